"""Several sources, each with its publisher, Valkey and collector, into one Postgres.

One, two and four sources share the same total rate: the cost of an event must not depend on the
number of sources, so that more collecting machines help until one Postgres is saturated.
"""

from functools import partial

from benchmarks.figures import Figure, Rounds
from benchmarks.path import add_cpu
from benchmarks.pipeline import Pipeline, measure_pipeline
from benchmarks.scale import Scale
from tests.support.servers import PostgresServer


def run(server: PostgresServer, scale: Scale) -> list[Figure]:
    figures: list[Figure] = []
    for count in scale.sources:
        figures += measure_pipeline(
            server, scale, partial(measure, scale=scale, count=count), sources=count
        )
    return figures


def measure(line: Pipeline, scale: Scale, count: int) -> list[Figure]:
    """Measure so many sources at the shared rate."""
    rounds = Rounds(f"sources, {count}")
    stretch = line.run(scale.sources_rate, scale.sources_seconds)
    rounds.add("rate, published", stretch.rate, "events/s")
    rounds.add("usage behind, most", stretch.max_lag, "s")
    add_cpu(rounds, stretch)
    return rounds.figures()
