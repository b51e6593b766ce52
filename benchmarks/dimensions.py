"""What usage, peaks and rates by server and transport cost the roll-up.

Without them the queued rows of servers are removed before every other roll-up, and slices are
counted for realms alone. There are twenty servers, over three transports, in three realms. To queue
these rows, some for each batch, is not in it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from accounting.usage import peaks
from accounting.usage.slice_counts import Dimension, SliceCount, SliceSteps, count_slices
from benchmarks.figures import Figure, Rounds
from benchmarks.fixture import BenchmarkDatabase, measure_rounds
from benchmarks.paired import open_workload, roll_up_in_turn
from benchmarks.scale import Scale
from benchmarks.settle import check
from benchmarks.workload import Workload
from tests.support.servers import PostgresServer

MOST_MICROS: Final = 1.0
SERVERS: Final = 20
EMPTY: Final = "DELETE FROM accounting.server_deltas"


def run(server: PostgresServer, scale: Scale) -> list[Figure]:
    return measure_rounds("dimensions", server, scale, _measure)


def _measure(bed: BenchmarkDatabase, scale: Scale, rounds: Rounds) -> None:
    books = bed.books()
    mix = Workload(scale.open_sessions, scale.users, servers=SERVERS)
    filler = open_workload(books, mix)

    @contextmanager
    def turn(having: bool) -> Iterator[None]:
        if having:
            yield
            return
        bed.query(EMPTY)
        vars(peaks)["count_slices"] = _realms_only
        try:
            yield
        finally:
            vars(peaks)["count_slices"] = count_slices

    cost = roll_up_in_turn(bed, scale, books, mix, filler, turn)
    check(bed, mix)
    books.close()
    rounds.add("CPU, Postgres, roll-up, without them", cost.lacking, "us/event")
    rounds.add("CPU, Postgres, roll-up, by server and transport", cost.having, "us/event")
    rounds.add(
        "CPU, Postgres, the dimensions alone", cost.difference, "us/event", target=MOST_MICROS
    )


def _realms_only(steps: Iterable[SliceSteps]) -> Iterator[SliceCount]:
    return (count for count in count_slices(steps) if count[3] == Dimension.REALM)
