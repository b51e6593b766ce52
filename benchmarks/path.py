"""The whole path: from PUBLISH to usage, everything on this machine, at a rate and at its limit.

Publisher, Valkey, Postgres and the real processes `collect` and `schedule`, at their usual
intervals. "Behind" is the age of the oldest session that the usage does not have yet, sampled every
second. At the end the books must equal what was published, to the byte and without a gap.
"""

from benchmarks.figures import Figure, Rounds
from benchmarks.measure import log_progress
from benchmarks.pipeline import MeasuredRun, Pipeline, measure_pipeline
from benchmarks.scale import Scale
from tests.support.servers import PostgresServer

STEP_UP = 1.2
MIN_RATE = 1_000
OURS = ("collector", "loader", "jobs", "Postgres")
MAX_MICROS = 24.0
MAX_LOG_BYTES = 500.0


def run(server: PostgresServer, scale: Scale) -> list[Figure]:
    return measure_pipeline(server, scale, lambda line: measure(line, scale))


def measure(line: Pipeline, scale: Scale) -> list[Figure]:
    """Measure the rate of the scale, then search the highest rate."""
    rounds = Rounds("path")
    log_progress(f"path: {scale.rate:,.0f} events/s for {scale.seconds:.0f} s")
    stretch = line.run(scale.rate, scale.seconds)
    add_figures(rounds, stretch, scale)
    if scale.search_seconds:
        rounds.add("highest rate that it holds", _search(line, scale, stretch), "events/s")
    return rounds.figures()


def add_figures(rounds: Rounds, stretch: MeasuredRun, scale: Scale) -> None:
    """Add the figures of one rate."""
    rounds.add(
        "rate, published", stretch.rate, "events/s", target=0.98 * scale.rate, bound="at least"
    )
    rounds.add("usage behind, most", stretch.max_lag, "s", target=scale.most_behind_seconds)
    rounds.add("usage behind, usually", stretch.median_lag, "s")
    rounds.add("settling behind, most", max(stretch.settle_lags), "s")
    add_cpu(rounds, stretch)
    ours = sum(map(stretch.cpu_micros, OURS))
    rounds.add("CPU, without publisher and Redis", ours, "us/event", target=MAX_MICROS)
    rounds.add("cores at work", stretch.cores, "")
    rounds.add("time to catch up afterwards", stretch.catch_up_seconds, "s")
    rounds.add(
        "Postgres' log",
        stretch.wal_bytes / max(stretch.sent, 1),
        "B/event",
        target=MAX_LOG_BYTES,
    )
    for kind, sizes in stretch.resident.items():
        rounds.add(f"memory, {kind}", max(sizes) / 1e6, "MB")


def add_cpu(rounds: Rounds, stretch: MeasuredRun) -> None:
    """Add the CPU time for each message, by kind of process and in total."""
    for kind in stretch.cpu:
        rounds.add(f"CPU, {kind}", stretch.cpu_micros(kind), "us/event")
    rounds.add("CPU, all of it", sum(map(stretch.cpu_micros, stretch.cpu)), "us/event")


def holds(stretch: MeasuredRun, scale: Scale) -> bool:
    """Whether the rate was reached and the lag stayed within its limit."""
    return (
        stretch.max_lag <= scale.most_behind_seconds and stretch.rate >= 0.97 * stretch.target_rate
    )


def _search(line: Pipeline, scale: Scale, first: MeasuredRun) -> float:
    """The highest rate that holds, in steps of STEP_UP; 0.0 if none does."""
    held = first.target_rate if holds(first, scale) else 0.0
    rate = first.target_rate
    while True:
        rate = rate * STEP_UP if held else rate / STEP_UP
        if rate < MIN_RATE:
            return 0.0
        stretch = line.run(rate, scale.search_seconds)
        verdict = "holds" if holds(stretch, scale) else "does not hold"
        log_progress(
            f"path: {rate:,.0f} events/s {verdict}: {stretch.rate:,.0f} published,"
            f" {stretch.max_lag:.1f} s behind"
        )
        if holds(stretch, scale):
            if not held and rate < first.target_rate:
                return rate
            held = rate
        elif held:
            return held
