"""Several sources, each with its publisher, Valkey and collector, into one Postgres.

The same rate in all, shared by one, two and four: what an event costs must not depend on how many
sources bring it. Then more machines add up until one Postgres is full.
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
    """What so many sources cost at the rate that they share."""
    rounds = Rounds(f"sources, {count}")
    stretch = line.run(scale.sources_rate, scale.sources_seconds)
    rounds.add("rate, published", stretch.rate, "events/s")
    rounds.add("usage behind, most", stretch.max_lag, "s")
    add_cpu(rounds, stretch)
    return rounds.figures()
