"""The capture clock: steady within a run, set by the database's clock, with its spool corrected.

A machine's clocks are simulated; the spool is real.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.capture.clock import (
    MAX_CLOCK_ERROR,
    MAX_UNCERTAINTY,
    STEP_READINGS,
    CaptureClock,
    ClockReading,
)
from accounting.capture.clock_correction import ClockCorrection
from accounting.capture.source import Attachment
from accounting.capture.spool.records import RawKeySighting
from accounting.capture.spool.spool import Spool
from tests.support.collectors import CHANNEL, stored_messages

SECOND: Final = 1_000_000
HOUR: Final = 3600 * SECOND
DAY: Final = 24 * HOUR
START: Final = 1_793_534_390 * SECOND
"""Ten seconds before a month begins in UTC."""


@dataclass
class Machine:
    """A machine and a database, at ``now`` in truth. Errors are microseconds."""

    now: int = START
    boot: str = "first"
    booted_at: int = START - DAY
    wall_error: int = 0
    steady_error: int = 0
    database_error: int = 0

    def clock(self) -> CaptureClock:
        return CaptureClock(
            wall=lambda: self.now + self.wall_error,
            steady=lambda: self.now - self.booted_at + self.steady_error,
            boot=self.boot,
        )

    def reboot(self) -> None:
        self.boot, self.booted_at, self.steady_error = f"{self.boot} again", self.now, 0


class Collector:
    """One run of a collector: receives a message whenever a test says so."""

    def __init__(self, machine: Machine, spool: Spool) -> None:
        self.machine = machine
        self.spool = spool
        self.clock = machine.clock()
        self.times = ClockCorrection(self.clock, spool)
        self.times.start()

    def receive(self, after: int = 0) -> int:
        """Receive a message that much later; returns its true time."""
        self.machine.now += after
        self.times.follow_database()
        message = self.clock(), 0, CHANNEL, b"%d" % self.machine.now
        self.spool.append([message], self.clock(), correction=self.times.correction)
        return self.machine.now

    def read_database(self, times: int = 1, uncertainty: int = 1_000) -> None:
        """Read the database's clock, so many times within so many seconds."""
        for _ in range(times):
            steady = self.clock.steady()
            database = self.machine.now + self.machine.database_error
            reading = ClockReading(
                steady, database - steady, uncertainty, wall_ahead=self.clock.wall() - database
            )
            self.clock.observe(reading)
            self.receive(after=SECOND)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def spool(tmp_path: Path, machine: Machine) -> Iterator[Spool]:
    clock = machine.clock()
    with Spool.open(tmp_path / "test.sqlite3", "test", clock=clock.now) as spool:
        yield spool


def errors(spool: Spool) -> list[int]:
    """By how much each stored time differs from the true one, which is the payload."""
    return [message.received_at - int(message.payload) for message in stored_messages(spool)]


def estimates(spool: Spool) -> list[bool]:
    return [message.estimated for message in stored_messages(spool)]


@pytest.mark.parametrize(
    ("step", "seconds"), [(32 * DAY, 6), (3653 * DAY, 3), (HOUR, 20), (-HOUR, 20)]
)
def test_a_step_of_the_machines_clock_does_not_reach_a_run(
    machine: Machine, spool: Spool, step: int, seconds: int
) -> None:
    """With no traffic only the checkpoints show it."""
    collector = Collector(machine, spool)
    collector.read_database()
    machine.wall_error = step
    for _ in range(seconds):
        machine.now += SECOND
        spool.checkpoint(collector.clock.now())
    machine.wall_error = 0
    assert spool.state().captured_until == machine.now
    collector.read_database()
    collector.receive()
    assert errors(spool) == [0, 0, 0]
    assert not any(estimates(spool))


@pytest.mark.parametrize("error", [32 * DAY, 3653 * DAY, HOUR, -HOUR, 3 * SECOND])
def test_what_was_stored_under_a_wrong_clock_is_corrected_and_marked_estimated(
    machine: Machine, spool: Spool, error: int
) -> None:
    """The machine's clock was wrong at the start. An hour crosses a month's border."""
    machine.wall_error = error
    collector = Collector(machine, spool)
    collector.receive()
    began_at = spool.epochs()[0].started_at
    assert errors(spool) == [error]
    assert spool.state().unconfirmed_from == 0, "the loader waits"
    collector.read_database(STEP_READINGS)
    machine.wall_error = 0  # NTP
    for _ in range(20):
        collector.receive(after=SECOND)
    assert errors(spool) == [0] * len(errors(spool))
    times = [message.received_at for message in stored_messages(spool)]
    assert times[-1] - times[-21] == 20 * SECOND, "20 s are worth 20 s"
    assert estimates(spool)[0]
    assert not any(estimates(spool)[STEP_READINGS + 1 :])
    state = spool.state()
    assert (state.captured_until, state.unconfirmed_from) == (machine.now, None)
    assert spool.epochs()[0].started_at == began_at - error


def test_everything_with_a_time_is_corrected_together(machine: Machine, spool: Spool) -> None:
    machine.wall_error = HOUR
    collector = Collector(machine, spool)
    attachment = Attachment(
        mode="subscribe",
        captured_from=collector.clock(),
        server_run_id=None,
        server_started_at=collector.clock() - DAY,
    )
    assert collector.times.corrected(attachment) == attachment
    collector.receive()
    gap = spool.open_gap(collector.clock.now(), "disconnected")
    spool.close_gap(gap, collector.clock.now() + 5 * SECOND)
    sighting = RawKeySighting(collector.clock(), collector.clock() + 1, 0, b"key", 7)
    spool.add_sightings([sighting])
    true_at = machine.now
    collector.read_database(STEP_READINGS)
    collector.receive()
    (gap_row,) = spool.gaps()
    assert (gap_row.from_at, gap_row.to_at) == (true_at, true_at + 5 * SECOND)
    (stored,) = spool.sightings()
    assert (stored.scan_started_at, stored.seen_at) == (true_at, true_at + 1)
    corrected = collector.times.corrected(attachment)
    assert corrected.captured_from == true_at
    assert corrected.server_started_at == true_at - DAY
    assert collector.times.corrected_sighting(sighting).seen_at == true_at + 1
    in_timeline = collector.times.to_timeline(spool.state())
    assert in_timeline.captured_until == collector.clock()


def test_lookups_by_time_find_corrected_messages(machine: Machine, spool: Spool) -> None:
    """A restored database says until when it had loaded."""
    machine.wall_error = 32 * DAY
    collector = Collector(machine, spool)
    first_at = collector.receive()
    second_at = collector.receive(after=SECOND)
    collector.read_database(STEP_READINGS)
    collector.receive()
    assert spool.position_at(1, first_at) == 1
    assert spool.position_at(1, second_at) == 2
    assert spool.epoch_and_position_at(second_at - 1) == (1, 1)


def test_loaded_messages_keep_their_times_and_later_ones_stay_after_them(
    machine: Machine, spool: Spool
) -> None:
    """The database has them; receipt times never fall."""
    machine.wall_error = 10 * SECOND
    collector = Collector(machine, spool)
    collector.receive()
    collector.receive(after=SECOND)
    spool.mark_loaded(1, 1)
    collector.read_database(STEP_READINGS)
    collector.receive(after=20 * SECOND)
    first, *others = stored_messages(spool)
    assert first.received_at == int(first.payload) + 10 * SECOND
    assert not first.estimated
    times = [first.received_at, *(message.received_at for message in others)]
    assert times == sorted(times)
    assert errors(spool)[-1] == 0, "not pinned"


@pytest.mark.parametrize("error", [MAX_CLOCK_ERROR - SECOND, SECOND - MAX_CLOCK_ERROR])
def test_a_small_error_is_removed_gradually(machine: Machine, spool: Spool, error: int) -> None:
    machine.wall_error = error
    collector = Collector(machine, spool)
    for _ in range(60):
        collector.read_database()
    found = errors(spool)
    assert abs(found[0]) <= abs(error)
    assert abs(found[-1]) <= 1_000
    steps = [later - earlier for earlier, later in pairwise(found)]
    assert max(map(abs, steps)) <= SECOND // 10
    times = [message.received_at for message in stored_messages(spool)]
    assert times == sorted(set(times)), "never pinned"
    assert not any(estimates(spool))


@pytest.mark.parametrize("parts_per_million", [500, -500])
def test_a_clock_that_drifts_is_held_to_the_databases(
    machine: Machine, spool: Spool, parts_per_million: int
) -> None:
    collector = Collector(machine, spool)
    for _ in range(50):
        machine.now += 300 * SECOND
        machine.steady_error += 300 * parts_per_million
        collector.read_database()
    assert max(map(abs, errors(spool))) < SECOND
    assert not any(estimates(spool))


def test_one_wrong_reading_of_the_databases_clock_moves_nothing(
    machine: Machine, spool: Spool
) -> None:
    """It only delays loading until the next reading."""
    collector = Collector(machine, spool)
    collector.read_database()
    machine.database_error = 3653 * DAY
    collector.read_database(STEP_READINGS - 1)
    assert spool.state().unconfirmed_from is not None
    machine.database_error = 0
    collector.read_database()
    collector.receive()
    assert errors(spool) == [0] * len(errors(spool))
    assert not any(estimates(spool))
    assert spool.state().unconfirmed_from is None


def test_readings_that_disagree_with_one_another_correct_nothing(
    machine: Machine, spool: Spool
) -> None:
    collector = Collector(machine, spool)
    collector.read_database()
    for error in (HOUR, 2 * HOUR, DAY, -DAY, HOUR):
        machine.database_error = error
        collector.read_database()
    assert errors(spool) == [0] * len(errors(spool))


def test_a_reading_without_precision_is_dropped(machine: Machine, spool: Spool) -> None:
    """A database that answers after many seconds says little about the time."""
    collector = Collector(machine, spool)
    machine.database_error = HOUR
    collector.read_database(2 * STEP_READINGS, uncertainty=MAX_UNCERTAINTY + 1)
    assert errors(spool) == [0] * len(errors(spool))


def test_a_machine_that_was_suspended_without_its_steady_clock_is_corrected(
    machine: Machine, spool: Spool
) -> None:
    """As virtual machines are. What was stored before is loaded, as a rule within a second."""
    collector = Collector(machine, spool)
    collector.read_database()
    spool.mark_loaded(1, 1)
    machine.steady_error -= HOUR
    machine.now += HOUR
    collector.read_database(STEP_READINGS)
    collector.receive()
    assert errors(spool)[0] == 0
    assert errors(spool)[-1] == 0
    assert spool.state().unconfirmed_from is None


@pytest.mark.parametrize("error", [DAY, -HOUR])
def test_a_run_that_was_killed_under_a_wrong_clock_is_corrected_by_the_next(
    machine: Machine, spool: Spool, error: int
) -> None:
    """While the machine runs its steady clock connects the two runs."""
    machine.wall_error = error
    killed = Collector(machine, spool)
    killed.receive()
    killed.receive(after=SECOND)
    machine.now += 30 * SECOND
    machine.wall_error = 0
    successor = Collector(machine, spool)
    successor.receive()
    successor.read_database(STEP_READINGS)
    successor.receive()
    assert errors(spool) == [0] * len(errors(spool))


def test_a_run_that_was_killed_under_a_wrong_clock_is_corrected_after_a_restart_of_the_machine(
    machine: Machine, spool: Spool
) -> None:
    """How long the machine was off is unknown: the times end where the next run begins."""
    machine.wall_error = 3653 * DAY
    killed = Collector(machine, spool)
    killed.receive()
    killed.receive(after=SECOND)
    machine.now += 600 * SECOND
    machine.wall_error = 0
    machine.reboot()
    successor = Collector(machine, spool)
    successor.receive()
    successor.read_database(STEP_READINGS)
    successor.receive()
    assert errors(spool)[:2] == [600 * SECOND - 1, 600 * SECOND - 1]
    assert errors(spool)[2:] == [0] * len(errors(spool)[2:])
    assert estimates(spool)[:2] == [True, True]


def test_a_restart_on_the_same_machine_does_not_ask_its_clock_again(
    machine: Machine, spool: Spool
) -> None:
    """The time was confirmed; then the database went away and the clock went wrong."""
    collector = Collector(machine, spool)
    collector.read_database()
    machine.wall_error = 3653 * DAY
    restarted = Collector(machine, spool)
    restarted.receive(after=SECOND)
    assert errors(spool) == [0, 0]
    assert spool.state().unconfirmed_from is None


def test_a_clock_that_steps_back_before_a_restart_does_not_pin_times(
    machine: Machine, spool: Spool
) -> None:
    """The machine was started again with a clock an hour behind its last messages."""
    first = Collector(machine, spool)
    first.read_database()
    machine.now += 60 * SECOND
    machine.reboot()
    machine.wall_error = -HOUR
    collector = Collector(machine, spool)
    collector.receive()
    collector.receive(after=20 * SECOND)
    *_, before, after = stored_messages(spool)
    assert after.received_at - before.received_at == 20 * SECOND
    collector.read_database(STEP_READINGS)
    collector.receive()
    assert errors(spool) == [0] * len(errors(spool))


ACTIONS: Final = st.lists(
    st.one_of(
        st.tuples(st.just("set the clock"), st.sampled_from([0, HOUR, -HOUR, 32 * DAY, -DAY])),
        st.tuples(st.just("receive"), st.integers(0, 2 * HOUR)),
        st.tuples(st.just("read the database's clock"), st.integers(1, STEP_READINGS)),
        st.tuples(st.just("restart the collector"), st.integers(0, HOUR)),
        st.tuples(st.just("restart the machine"), st.integers(1, HOUR)),
    ),
    max_size=8,
)


@settings(max_examples=25)
@given(actions=ACTIONS)
def test_any_history_ends_with_true_times(
    tmp_path_factory: pytest.TempPathFactory, actions: Sequence[tuple[str, int]]
) -> None:
    """Once the database is reached. Only how long a machine was off can be unknown."""
    machine = Machine()
    path = tmp_path_factory.mktemp("history") / "test.sqlite3"
    with Spool.open(path, "test", clock=machine.clock().now) as spool:
        collector = Collector(machine, spool)
        for action, amount in actions:
            match action:
                case "set the clock":
                    machine.wall_error = amount
                case "receive":
                    collector.receive(after=amount)
                case "read the database's clock":
                    collector.read_database(amount)
                case _:
                    machine.now += amount
                    if action == "restart the machine":
                        machine.reboot()
                    collector = Collector(machine, spool)
        collector.read_database(STEP_READINGS)
        collector.receive()
        times = [message.received_at for message in stored_messages(spool)]
        assert times == sorted(times)
        assert spool.state().newest_at == times[-1]
        assert abs(times[-1] - machine.now) <= MAX_CLOCK_ERROR
        assert spool.state().unconfirmed_from is None
        if "restart the machine" not in dict(actions):
            # A restart may begin a microsecond later, so that no time is used twice.
            assert max(map(abs, errors(spool))) <= len(actions)
