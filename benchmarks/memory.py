"""The memory of collector and loader with very many open sessions, and its growth with time.

All sessions start, then new ones replace them for a while. The second half must not need more
memory than the first.
"""

from dataclasses import replace

from benchmarks.figures import Figure, Rounds
from benchmarks.pipeline import Pipeline, measure_pipeline
from benchmarks.scale import Scale
from tests.support.servers import PostgresServer

TARGET_MEGABYTES = 300.0


def run(server: PostgresServer, scale: Scale) -> list[Figure]:
    wide = replace(scale, open_sessions=scale.many_sessions, users=scale.many_sessions // 2)
    return measure_pipeline(server, wide, lambda line: measure(line, wide))


def measure(line: Pipeline, scale: Scale) -> list[Figure]:
    """The memory of a pipeline with all sessions open, and while it runs."""
    rounds = Rounds("memory")
    filled = line.memory()
    stretch = line.run(scale.sources_rate, scale.memory_seconds)
    for kind, sizes in stretch.resident.items():
        target = TARGET_MEGABYTES if kind in {"collector", "loader"} else None
        half = max(1, len(sizes) // 2)
        most = max(*sizes, filled[kind]) / 1e6
        rounds.add(f"{kind}, most", most, "MB", target=target)
        grown = max(sizes[half:], default=0) - max(sizes[:half])
        rounds.add(f"{kind}, grown in the second half", grown / 1e6, "MB")
    return rounds.figures()
