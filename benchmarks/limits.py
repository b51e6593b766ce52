"""What a limit of every user costs the roll-up: the workload in steps, with and without it in turn.

Each step loads about two seconds of messages, which settles them, and rolls up. The rule is the
same in all realms, hidden from every other step, and not reached. CPU time is that of all Postgres
processes.
"""

from typing import Final

from accounting.usage.limits.limit_rules import set_limit
from benchmarks.figures import Figure, Rounds
from benchmarks.fixture import BenchmarkDatabase, measure_rounds
from benchmarks.load import START, STEP_US
from benchmarks.measure import Cost, measure
from benchmarks.scale import Scale
from benchmarks.spool_filler import SpoolFiller, take_messages
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
    filler = SpoolFiller.starting_at(books.spool(), START)
    filler.append(mix.open(), STEP_US)
    books.run_jobs()

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
    churn = mix.churn()
    bed.vacuum_and_checkpoint()
    costs = {is_limited: Cost() for is_limited in (True, False)}
    events = dict.fromkeys(costs, 0)
    is_limited = True
    while sum(events.values()) < 2 * scale.events:
        events[is_limited] += filler.append(take_messages(churn, scale.step_events), STEP_US)
        books.load()
        with costs[is_limited].measuring(bed.server.pid):
            books.rollup()
        bed.query(HIDE)
        is_limited = not is_limited
    assert bed.query("SELECT count(*) FROM accounting.limit_states") == [(0,)]
    books.close()

    micros = {of: costs[of].postgres * 1e6 / events[of] for of in costs}
    rounds.add("CPU, Postgres, roll-up, without a limit", micros[False], "us/event")
    rounds.add("CPU, Postgres, roll-up, with one of every user", micros[True], "us/event")
    rounds.add(
        "CPU, Postgres, the limit alone", micros[True] - micros[False], "us/event",
        target=MOST_MICROS,
    )  # fmt: skip
    rounds.add("setting it, CPU, Postgres", setting.postgres * 1e6 / mix.users, "us/user")
