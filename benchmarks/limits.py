"""What a limit of every user costs the roll-up.

The rule is the same in all realms, hidden from every other roll-up, and not reached.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from accounting.usage.limits.limit_rules import set_limit
from benchmarks.figures import Figure, Rounds
from benchmarks.fixture import BenchmarkDatabase, measure_rounds
from benchmarks.measure import measure
from benchmarks.paired import open_workload, roll_up_in_turn
from benchmarks.scale import Scale
from benchmarks.workload import REALMS, Workload
from tests.support.servers import PostgresServer

AMOUNT: Final = 10**12
MOST_MICROS: Final = 0.5
HIDE: Final = "UPDATE accounting.limits SET realm_id = -realm_id"


def run(server: PostgresServer, scale: Scale) -> list[Figure]:
    return measure_rounds("limits", server, scale, _measure)


def _measure(bed: BenchmarkDatabase, scale: Scale, rounds: Rounds) -> None:
    books = bed.books()
    mix = Workload(scale.open_sessions, scale.users)
    filler = open_workload(books, mix)

    def set_limits() -> None:
        for realm in REALMS:
            set_limit(
                books.engine,
                realm.decode(),
                every_user=True,
                measure="bytes",
                per="month",
                amount=AMOUNT,
                warnings=(50, 80, 95),
            )

    setting = measure(bed.server.pid, set_limits)

    @contextmanager
    def turn(having: bool) -> Iterator[None]:
        if not having:
            bed.query(HIDE)
        yield
        if not having:
            bed.query(HIDE)

    cost = roll_up_in_turn(bed, scale, books, mix, filler, turn)
    assert bed.query("SELECT count(*) FROM accounting.limit_states") == [(0,)]
    books.close()
    rounds.add("CPU, Postgres, roll-up, without a limit", cost.lacking, "us/event")
    rounds.add("CPU, Postgres, roll-up, with one of every user", cost.having, "us/event")
    rounds.add("CPU, Postgres, the limit alone", cost.difference, "us/event", target=MOST_MICROS)
    rounds.add("setting it, CPU, Postgres", setting.postgres * 1e6 / mix.users, "us/user")
