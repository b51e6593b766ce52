"""The messages of a spool behave as a list of messages, whatever chunks they are in."""

from bisect import bisect_right
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting.capture.spool.messages import DAMAGED_SPOOL
from accounting.capture.spool.pruning import prune
from accounting.capture.spool.records import SpooledRow
from accounting.capture.spool.spool import Spool
from accounting.capture.spool.takeover import take_over_position
from accounting.errors import DamagedChunk, SpoolError
from tests.support.collectors import stored_messages

Place = tuple[int, int]


def place_of(row: SpooledRow) -> Place:
    return row[0] >> 35, row[1]


@dataclass
class Model:
    """A spool and what it should hold."""

    spool: Spool
    rows: list[SpooledRow] = field(default_factory=list)
    loaded: Place = (0, 0)

    def append(self, steps: list[tuple[int, int, int]], estimated_count: int) -> None:
        """Messages, each by so much after the one before it: position, time, and its database."""
        state = self.spool.state()
        epoch, position, at = state.captured_epoch, state.captured_position, state.last_received_at
        messages, positions = [], []
        for number, (position_step, time_step, database) in enumerate(steps):
            position, at = position + position_step, at + time_step
            origin = epoch << 35 | database << 1 | (number < estimated_count)
            self.rows.append((origin, position, at, b"c%d" % position, b"p%d" % at))
            messages.append((at, database, b"c%d" % position, b"p%d" % at))
            positions.append(position)
        self.spool.append(messages, positions=positions, estimated_count=estimated_count)

    def load(self, count: int) -> None:
        """Load so many of the messages."""
        if self.rows:
            self.loaded = max(self.loaded, place_of(self.rows[min(count, len(self.rows)) - 1]))
            self.spool.mark_loaded(*self.loaded)

    def prune(self, before: int) -> None:
        kept = [row for row in self.rows if place_of(row) > self.loaded or row[2] >= before]
        assert prune(self.spool, before) == len(self.rows) - len(kept)
        self.rows = kept

    def shift(self, by: int, after: int) -> None:
        loaded_at = max((row[2] for row in self.rows if place_of(row) == self.loaded), default=0)
        after = max(after, loaded_at)
        shifted = 0
        for index, (origin, position, at, channel, payload) in enumerate(self.rows):
            if place_of(self.rows[index]) > self.loaded and at > after:
                shifted += 1
                self.rows[index] = origin | 1, position, max(at + by, after), channel, payload
        assert self.spool.shift_times(by, after=after) == shifted

    def set_back(self, count: int) -> None:
        """Another collector went on after so many of the messages."""
        if not self.rows:
            return
        epoch, position = place_of(self.rows[min(count, len(self.rows)) - 1])
        take_over_position(
            self.spool,
            token=next(known.token for known in self.spool.epochs() if known.number == epoch),
            position=position,
            captured_until=None,
            last_received_at=None,
            replication_id=None,
            stream_database=None,
            cause="taken_over",
        )
        self.rows = [row for row in self.rows if place_of(row) <= (epoch, position)]
        self.loaded = epoch, position

    def check(self, limit: int) -> None:
        """Every way of reading gives what the list gives."""
        spool = self.spool
        assert spool.read_messages(0, 0, 1000) == self.rows
        found, place = list[SpooledRow](), (0, 0)
        while rows := spool.read_messages(*place, limit):
            assert len(rows) <= limit
            found, place = found + rows, place_of(rows[-1])
        assert found == self.rows
        places = [place_of(row) for row in self.rows]
        for place in [(0, 0), *places]:
            later = self.rows[bisect_right(places, place) :]
            assert spool.read_messages(*place, 1000, self.loaded) == [
                row for row in later if place_of(row) <= self.loaded
            ]
            assert spool.count_after(*place, 1000) == (
                len(later),
                sum(len(row[3] + row[4]) for row in later),
                later[0][2] if later else None,
            )
        for epoch in (1, 2):
            rows = [row for row in self.rows if place_of(row)[0] == epoch]
            assert spool.last_position(epoch) == (rows[-1][1] if rows else None)
            for row in rows:
                assert spool.received_at(epoch, row[1]) == row[2]
                for at in (row[2] - 1, row[2]):
                    index = bisect_right(rows, at, key=itemgetter(2))
                    assert spool.position_at(epoch, at) == (rows[index - 1][1] if index else 0)
            assert spool.received_at(epoch, 10**9) is None


STEPS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 2), st.sampled_from([0, 0, 5])), max_size=8
)
OPERATIONS = st.one_of(
    st.tuples(st.just("append"), STEPS, st.integers(0, 2)),
    st.tuples(st.just("load"), st.integers(1, 20)),
    st.tuples(st.just("prune"), st.integers(0, 30)),
    st.tuples(st.just("shift"), st.integers(-9, 9), st.integers(0, 20)),
    st.tuples(st.just("set_back"), st.integers(1, 20)),
    st.tuples(st.just("start_epoch")),
)


@given(st.lists(OPERATIONS, max_size=8), st.integers(1, 4))
def test_a_spool_holds_what_a_list_would(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, ...]], limit: int
) -> None:
    """With at most three messages a chunk, so that every border is met."""
    path = tmp_path_factory.mktemp("spool") / "spool"
    with pytest.MonkeyPatch.context() as patch, Spool.open(path, "test") as spool:
        patch.setattr("accounting.capture.spool.messages.CHUNK_MESSAGES", 3)
        patch.setattr("accounting.capture.spool.pruning.BATCH_CHUNKS", 2)
        model = Model(spool)
        for name, *arguments in operations:
            if name == "start_epoch":
                spool.start_epoch("test")
            else:
                getattr(model, name)(*arguments)
            model.check(limit)


def test_positions_that_do_not_rise_are_refused(tmp_path: Path) -> None:
    with Spool.open(tmp_path / "spool", "test") as spool:
        spool.append([(1, 0, b"c", b"p")], positions=[5])
        with pytest.raises(ValueError, match="position 5 does not follow 5"):
            spool.append([(2, 0, b"c", b"p")], positions=[5])
        assert len(stored_messages(spool)) == 1


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """Three commits of ten messages, at 1 to 10, 11 to 20 and 21 to 30."""
    spool = Spool.open(tmp_path / "spool", "test")
    spool.checkpoint(0)
    for first in (1, 11, 21):
        spool.append([(at, 0, b"c", b"%d" % at) for at in range(first, first + 10)], first + 10)
    return spool


def damage(spool: Spool, number: int) -> None:
    """Change one byte of a chunk."""
    (content,) = spool.fetch_one("SELECT content FROM chunks WHERE number = ?", (number,))
    changed = content[:20] + bytes([content[20] ^ 4]) + content[21:]
    with spool.transaction():
        spool.execute("UPDATE chunks SET content = ? WHERE number = ?", (changed, number))


@pytest.mark.parametrize(
    ("number", "rest", "gap"),
    [
        (1, [*range(11, 31)], (0, 12, 1, 0)),
        (2, [*range(1, 11), *range(21, 31)], (10, 22, 1, 10)),
        (3, [*range(1, 21)], (20, 31, 1, 20)),
    ],
)
def test_damaged_messages_are_found_and_become_a_gap(
    spool: Spool, number: int, rest: list[int], gap: tuple[int, int, int, int]
) -> None:
    """It is between the messages before and after them."""
    with spool:
        damage(spool, number)
        with pytest.raises(DamagedChunk, match="10 messages") as caught:
            stored_messages(spool)
        spool.replace_by_gap(caught.value)
        spool.replace_by_gap(caught.value)
        assert [row.received_at for row in stored_messages(spool)] == rest
        (found,) = spool.gaps()
        assert (found.from_at, found.to_at, found.epoch, found.position) == gap
        assert found.cause == DAMAGED_SPOOL
        spool.append([(40, 0, b"c", b"p")])
        assert stored_messages(spool)[-1].position == 31


def test_what_the_collector_and_pruning_do_is_not_stopped_by_damaged_messages(spool: Spool) -> None:
    with spool:
        damage(spool, 2)
        assert spool.shift_times(100, after=0) == 20
        spool.mark_loaded(1, 15)
        spool.shift_times(-1, after=0)
        prune(spool, 105)
        take_over_position(
            spool,
            token=spool.epochs()[0].token,
            position=15,
            captured_until=None,
            last_received_at=None,
            replication_id=None,
            stream_database=None,
            cause="taken_over",
        )
        assert [row.received_at for row in stored_messages(spool)] == [105, 106, 107, 108, 109, 110]


def test_a_change_of_any_byte_of_the_file_gives_no_wrong_message(
    tmp_path: Path, spool: Spool
) -> None:
    with spool:
        rows = stored_messages(spool)
    content = (tmp_path / "spool").read_bytes()
    copy = tmp_path / "copy"
    # Where a page begins, it has the number and the places of its rows.
    heads = [page + offset for page in range(0, len(content), 8192) for offset in range(3, 12)]
    for index in [*heads[9:], *range(100, len(content), 97)]:
        copy.write_bytes(content[:index] + bytes([content[index] ^ 0x11]) + content[index + 1 :])
        try:
            with Spool.open(copy, "test") as damaged:
                assert stored_messages(damaged) == rows
        except SpoolError:
            continue
