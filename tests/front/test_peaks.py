"""Peaks over cells are those of one database with everything, never the sum of the cells' peaks."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from accounting.audit.rebuild import rebuild
from accounting.domain.realm_rules import RealmRule
from accounting.errors import ConnectionLost
from accounting.front import join
from accounting.front.peaks.count_peaks import count_peaks
from accounting.front.peaks.recount_peaks import PeakDifference, recount_peaks
from accounting.identities.realm_rules import set_rule
from tests.support.books import Books, channel, status_payload
from tests.support.fronts import CELLS, HOUR, Front, open_front
from tests.support.scenario_player import BEGIN, ZONES
from tests.support.servers import PostgresServer

DAY: Final = HOUR * 24
VIEWS: Final = (
    "realm_usage_hourly",
    "realm_usage_daily",
    "realm_usage_monthly",
    "server_usage_hourly",
    "server_usage_daily",
    "transport_usage_hourly",
    "transport_usage_daily",
)
NORTH, SOUTH, WEST = CELLS


class Call(NamedTuple):
    """A session. ``end``: None for one that goes on."""

    cell: str
    start: float
    end: float | None
    server: str = "192.0.2.1"
    transport: str = "UDP"
    realm: str = "example.org"


@pytest.fixture
def front(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Front]:
    with open_front(postgres_server, tmp_path) as front:
        yield front


def receive(front: Front, calls: Iterable[Call], first: int = 1) -> None:
    """Receive these sessions, in the order of their times."""
    messages = []
    for allocation, call in enumerate(calls, first):
        name = channel("status", realm=call.realm, allocation=allocation)
        local = f"{call.server}:3478"
        new = status_payload("new", 40 * 3600, local=local, transport=call.transport)
        messages.append((call.start, call.cell, name, new))
        if call.end is not None:
            messages.append((call.end, call.cell, name, status_payload("deleted")))
    for at, cell, name, payload in sorted(messages, key=lambda message: message[0]):
        front.receive(cell, at, name, payload)


def peaks(rows: list[dict[str, Any]]) -> list[Any]:
    names = ("server_address", "transport", "peak_sessions")
    return sorted(
        (row["realm"], row["starts_at"], *(row.get(name) for name in names)) for row in rows
    )


def assert_peaks_are_those_of_the_whole(front: Front) -> None:
    count_peaks(front.books.engine)
    for view in VIEWS:
        assert peaks(front.rows(view)) == peaks(front.whole.rows(view)), view
    assert list(recount_peaks(front.books.engine)) == []
    assert count_peaks(front.books.engine) == 0


def peak(books: Books, view: str = "realm_usage_monthly") -> int:
    [row] = books.rows(view)
    return int(row["peak_sessions"])


def test_peaks_at_different_moments_are_not_added_up(front: Front) -> None:
    receive(
        front,
        [
            Call(cell, 60 + number * 300, 200 + number * 300)
            for number, cell in enumerate(CELLS)
            for _ in range(4)
        ],
    )
    front.run_jobs()
    assert peak(front.books) == 4
    assert_peaks_are_those_of_the_whole(front)
    assert peak(front.books) == 4


def test_a_peak_that_no_cell_has_alone_is_counted(front: Front) -> None:
    """Until it is, the highest of the cells' own is shown, which is never too much."""
    receive(
        front,
        [Call(cell, 10, 100) for cell in CELLS]
        + [Call(cell, 200, 300, server=f"{cell}.example") for cell in CELLS],
    )
    front.run_jobs()
    assert [peak(front.books, view) for view in VIEWS[:3]] == [1, 1, 1]
    assert_peaks_are_those_of_the_whole(front)
    assert [peak(front.books, view) for view in VIEWS[:3]] == [3, 3, 3]
    [[stored]] = [
        row.values()
        for row in front.books.query("SELECT count(*) FROM accounting.front_peaks WHERE name ~ 'e'")
    ]
    assert stored == 0, "what only one cell has needs nothing"


def test_within_a_slice_ends_come_before_starts(front: Front) -> None:
    """Within two seconds one cell hands over to the next, at the very same moment."""
    receive(
        front,
        [
            Call(NORTH, 10.1, 10.5),
            Call(NORTH, 10.2, 10.5),
            Call(SOUTH, 10.5, 11.2),
            Call(SOUTH, 10.5, 11.2),
            Call(WEST, 10.4, 10.45),
            Call(WEST, 10.6, 10.6),
        ],
    )
    front.run_jobs()
    assert_peaks_are_those_of_the_whole(front)
    assert peak(front.books) == 3


def test_late_usage_of_a_long_past_hour_is_counted_from_sessions(front: Front) -> None:
    """A cell catches up days later, when the others have no slices of that hour any more."""
    receive(front, [Call(cell, 30, HOUR * 2 + 30) for cell in (NORTH, SOUTH)])
    front.run_jobs()
    assert_peaks_are_those_of_the_whole(front)
    receive(front, [Call(cell, DAY * 5, DAY * 5 + 30) for cell in (NORTH, SOUTH)], 10)
    front.run_jobs()
    slices = "SELECT FROM accounting.realm_peak_slices WHERE starts_at < '2026-11-05'"
    assert front.cells[NORTH].query(slices) == []
    receive(front, [Call(WEST, 60, HOUR * 2 + 20), Call(WEST, HOUR + 1, HOUR + 2)], 20)
    front.run_jobs()
    assert_peaks_are_those_of_the_whole(front)
    assert sorted(row["peak_sessions"] for row in front.rows("realm_usage_hourly")) == [2, 3, 3, 4]


def test_a_cell_that_leaves_takes_its_sessions_out_of_peaks(front: Front) -> None:
    receive(front, [Call(cell, 10, 100) for cell in CELLS])
    front.run_jobs()
    assert_peaks_are_those_of_the_whole(front)
    url = front.cells[WEST].url()
    join.leave(front.engine, WEST, without_its_usage=True)
    assert peak(front.books) == 1
    count_peaks(front.books.engine)
    assert peak(front.books) == 2
    join.join_cell(front.engine, WEST, url, None)
    assert_peaks_are_those_of_the_whole(front)


def test_a_rebuilt_cell_is_counted_again(front: Front) -> None:
    receive(front, [Call(NORTH, 10, 100), Call(SOUTH, 10, 100), Call(WEST, 97, 99)])
    front.run_jobs()
    assert_peaks_are_those_of_the_whole(front)
    assert peak(front.books) == 3
    for books in (front.cells[NORTH], front.whole):
        with psycopg.connect(books.url()) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(
                "UPDATE accounting.reports SET received_at = received_at - interval '5 s'"
                " WHERE source_id = (SELECT source_id FROM accounting.sources"
                " WHERE source = 'north') AND received_at > '2026-11-02T12:01Z'"
            )
        assert list(rebuild(books.engine, "the end was five seconds earlier"))
    assert_peaks_are_those_of_the_whole(front)
    assert peak(front.books) == 2


def test_a_cell_restored_from_a_backup_is_compared_once_a_day(front: Front) -> None:
    """Its hours have versions from before, which no time of change tells, or are not there."""
    receive(front, [Call(cell, 10, 100) for cell in CELLS])
    receive(front, [Call(cell, HOUR + 10, HOUR + 100) for cell in CELLS], 10)
    front.run_jobs()
    assert_peaks_are_those_of_the_whole(front)
    with psycopg.connect(front.cells[WEST].url()) as connection:
        connection.execute("UPDATE accounting.sessions SET confirmed = false")
        connection.execute("DELETE FROM accounting.realm_peak_slices")
        connection.execute(
            "DELETE FROM accounting.peak_versions WHERE starts_at > '2026-11-02T12:00Z'"
        )
        connection.execute(
            "UPDATE accounting.peak_versions SET version = default, changed_at = '2026-01-01'"
        )
    assert count_peaks(front.books.engine) == 0
    with psycopg.connect(front.books.url()) as connection:
        connection.execute(
            "UPDATE accounting.front SET peaks_compared_at = peaks_compared_at - interval '1 day'"
        )
    assert count_peaks(front.books.engine) == 2
    assert [row["peak_sessions"] for row in front.rows("realm_usage_hourly")] == [2, 2]
    assert list(recount_peaks(front.books.engine)) == []


def test_a_wrong_peak_is_found(front: Front) -> None:
    receive(front, [Call(cell, 10, 100) for cell in CELLS])
    front.run_jobs()
    assert_peaks_are_those_of_the_whole(front)
    with psycopg.connect(front.books.url()) as connection:
        connection.execute("UPDATE accounting.front_peaks SET peak_sessions = 9 WHERE name = 'UDP'")
        connection.execute("DELETE FROM accounting.front_peaks WHERE dimension = 'realm'")
    noon = int(front.books.start.timestamp()) * 1_000_000
    assert list(recount_peaks(front.books.engine)) == [
        PeakDifference("example.org", noon, "realm", "", None, 3),
        PeakDifference("example.org", noon, "transport", "UDP", 9, 3),
    ]


def test_a_cell_that_does_not_answer_is_named_and_nothing_counted(front: Front) -> None:
    receive(front, [Call(cell, 10, 100) for cell in CELLS])
    front.run_jobs()
    with psycopg.connect(front.books.url()) as connection:
        connection.execute(
            "UPDATE accounting.cells SET url = replace(url, 'books', 'no') WHERE cell = 'south'"
        )
    with pytest.raises(ConnectionLost, match=r"^cell 'south': ") as raised:
        count_peaks(front.books.engine)
    assert "north" not in str(raised.value)
    assert peak(front.books) == 1


REALMS: Final = ("example.org", "howe")
MOMENTS: Final = st.integers(0, 30 * 14_400).map(lambda quarter: quarter / 4)
CLOSE: Final = st.integers(28_795, 28_830).map(lambda quarter: quarter / 4 + 600)
"""Around a full hour, so that several are within one slice."""
CALLS: Final = st.lists(
    st.builds(
        lambda cell, start, seconds, server, transport, realm: Call(
            cell, start, None if seconds is None else start + seconds, server, transport, realm
        ),
        st.sampled_from(CELLS),
        MOMENTS | CLOSE,
        st.none() | st.integers(0, 40).map(lambda quarter: quarter / 4) | st.integers(0, 40_000),
        st.sampled_from(("192.0.2.1", "192.0.2.2")),
        st.sampled_from(("UDP", "TCP")),
        st.sampled_from(REALMS),
    ),
    min_size=60,
    max_size=90,
)


@pytest.mark.parametrize("examples", [1, pytest.param(10, marks=pytest.mark.long)])
def test_peaks_of_random_histories(postgres_server: PostgresServer, examples: int) -> None:
    """In zones whose clocks change, cut into two parts, and counted whole in the end."""

    @seed(16)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(calls=CALLS, cut=st.integers(0, 60))
    def check(calls: list[Call], cut: int) -> None:
        with (
            TemporaryDirectory() as directory,
            open_front(postgres_server, Path(directory)) as front,
        ):
            for books in (*front.cells.values(), front.whole):
                books.start = BEGIN
                for realm in REALMS:
                    zone = {"time_zone": ZONES[realm]}
                    set_rule(books.engine, realm, zone, default=RealmRule(), holds_from=None)
            for number, part in enumerate((calls[:cut], calls[cut:])):
                receive(front, part, 1 + 100 * number)
                front.run_jobs()
                assert_peaks_are_those_of_the_whole(front)
            for cell in (NORTH, SOUTH):
                with psycopg.connect(front.cells[cell].url()) as connection:
                    connection.execute(
                        "DELETE FROM accounting.realm_peak_slices s"
                        " USING accounting.fold_watermarks f"
                        " WHERE s.realm_id = f.realm_id AND s.starts_at < f.folded_until"
                    )
            with psycopg.connect(front.books.url()) as connection:
                connection.execute("DELETE FROM accounting.front_peak_hours")
                connection.execute("UPDATE accounting.front SET peaks_compared_at = '-infinity'")
            assert_peaks_are_those_of_the_whole(front)

    check()
