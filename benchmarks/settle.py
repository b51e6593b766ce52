"""Settle and roll up the workload in steps, compared with one GROUP BY of it.

Each step loads about two seconds of messages, which settles them, rolls up and numbers the feed.
The limit sums the same reports by realm, user and hour. Then all open sessions expire. CPU time is
that of loader and jobs (this process) and of all Postgres processes.
"""

from accounting.domain.counters import COUNTERS
from accounting.feed.number_feed import number_feed
from accounting.sessions.settler import DUE_BATCH
from benchmarks.figures import Figure, Rounds
from benchmarks.fixture import BenchmarkDatabase, measure_rounds
from benchmarks.load import START, STEP_US
from benchmarks.measure import Cost, measure
from benchmarks.scale import Scale
from benchmarks.spool_filler import SpoolFiller, take_messages
from benchmarks.workload import Workload
from tests.support.servers import PostgresServer

GROUP_BY = """
SELECT realm_id, user_key, date_trunc('hour', received_at), count(*), sum(received_packets),
    sum(received_bytes), sum(sent_packets), sum(sent_bytes)
FROM accounting.reports WHERE position > %(after)s GROUP BY 1, 2, 3
"""
SECONDS_TO_EXPIRY = 700


def run(server: PostgresServer, scale: Scale) -> list[Figure]:
    return measure_rounds("settle", server, scale, _measure)


def check(bed: BenchmarkDatabase, mix: Workload) -> None:
    """The books have the usage of the whole workload, to the byte."""
    wanted = mix.expected()
    for view in ("user_usage_hourly", "user_usage_monthly", "realm_usage_monthly"):
        assert bed.sums(view, wanted) == list(wanted.values()), view
    assert bed.sums("sessions", COUNTERS) == [wanted[name] for name in COUNTERS]


def _measure(bed: BenchmarkDatabase, scale: Scale, rounds: Rounds) -> None:
    books = bed.books()
    mix = Workload(scale.open_sessions, scale.users)
    filler = SpoolFiller.starting_at(books.spool(), START)
    filler.append(mix.open(), STEP_US)
    books.run_jobs()
    number_feed(books.engine)
    opened, churn, events = mix.messages, mix.churn(), 0
    bed.vacuum_and_checkpoint()
    settling, rolling, feeding = Cost(), Cost(), Cost()
    while events < scale.events:
        events += filler.append(take_messages(churn, scale.step_events), STEP_US)
        with settling.measuring(bed.server.pid):
            books.load()
        with rolling.measuring(bed.server.pid):
            books.rollup()
        with feeding.measuring(bed.server.pid):
            number_feed(books.engine)
    check(bed, mix)
    grouping = measure(bed.server.pid, lambda: bed.query(GROUP_BY, {"after": opened}))
    alive = mix.open_now
    filler.advance_clock(SECONDS_TO_EXPIRY)

    def expire() -> None:
        for _ in range(0, alive, DUE_BATCH):
            books.load()

    expiring = measure(bed.server.pid, expire)
    (ended,) = bed.query("SELECT count(*) FROM accounting.sessions WHERE end_cause = 'expired'")
    assert ended == (alive,)
    books.close()

    micro = 1e6 / events
    both = settling.postgres + rolling.postgres
    rounds.add(
        "rate, load, settle and roll-up", events / (settling.wall + rolling.wall), "events/s"
    )
    rounds.add("CPU, Postgres, load, settle and roll-up", both * micro, "us/event", target=9.0)
    rounds.add("CPU, Postgres, load and settle", settling.postgres * micro, "us/event")
    rounds.add("CPU, Postgres, roll-up", rolling.postgres * micro, "us/event")
    rounds.add("CPU, Postgres, feed", feeding.postgres * micro, "us/event")
    rounds.add("CPU, loader, load and settle", settling.client * micro, "us/event", target=11.0)
    rounds.add("CPU, jobs, roll-up", rolling.client * micro, "us/event")
    rounds.add("limit: CPU, Postgres, one GROUP BY", grouping.postgres * micro, "us/event")
    rounds.add("CPU ratio", both / max(grouping.postgres, 0.01), "", limit="one GROUP BY")
    rounds.add("expiry: CPU, Postgres", expiring.postgres * 1e6 / alive, "us/session")
    rounds.add("expiry: CPU, loader", expiring.client * 1e6 / alive, "us/session")
