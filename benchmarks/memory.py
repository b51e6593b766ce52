"""Memory: the collector and the loader with very many sessions open, and then with time.

All sessions begin, then lives are replaced for a while. The second half of that while must need no
more than the first.
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
    """Memory of a line that is filled, and while it runs on."""
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
