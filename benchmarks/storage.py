"""Bytes on disk of each table and index for a million events.

The events are those of one day with complete sessions, loaded through the service: each user has a
few sessions of half an hour.
"""

from collections.abc import Iterator

from benchmarks.figures import Figure, Rounds
from benchmarks.fixture import BenchmarkDatabase, benchmark_database
from benchmarks.history import History
from benchmarks.scale import Scale
from tests.support.servers import PostgresServer

SIZES = """
SELECT coalesce(p.inhparent, c.oid)::regclass::text, 'table',
    sum(pg_table_size(c.oid))::bigint
FROM pg_class c LEFT JOIN pg_inherits p ON p.inhrelid = c.oid
WHERE c.relnamespace = 'accounting'::regnamespace AND c.relkind = 'r'
GROUP BY 1
UNION ALL
SELECT coalesce(p.inhparent, c.oid)::regclass::text,
    coalesce(ip.inhparent, i.indexrelid)::regclass::text,
    sum(pg_relation_size(i.indexrelid))::bigint
FROM pg_class c
JOIN pg_index i ON i.indrelid = c.oid
LEFT JOIN pg_inherits p ON p.inhrelid = c.oid
LEFT JOIN pg_inherits ip ON ip.inhrelid = i.indexrelid
WHERE c.relnamespace = 'accounting'::regnamespace AND c.relkind = 'r'
GROUP BY 1, 2
"""
MIN_MEGABYTES = 0.5


def run(server: PostgresServer, scale: Scale) -> list[Figure]:
    rounds = Rounds("storage")
    with benchmark_database(server) as bed:
        history = History(bed, scale)
        history.begin()
        bed.vacuum_and_checkpoint()
        (counted,) = bed.query("SELECT count(*) FROM accounting.reports")
        million = counted[0] / 1e6
        total = 0.0
        for table, part, megabytes in sizes(bed):
            share = megabytes / million
            total += share
            if share >= MIN_MEGABYTES:
                rounds.add(f"{table}, {part}", share, "MB per million events")
        rounds.add("all tables and indexes", total, "MB per million events")
        rounds.add(
            "spool", history.books.spool().size_bytes() / 1e6 / million, "MB per million events"
        )
        history.books.close()
    return rounds.figures()


def sizes(bed: BenchmarkDatabase) -> Iterator[tuple[str, str, float]]:
    """Table, ``table`` or the index, megabytes; partitions count for their table."""
    for table, part, size in sorted(bed.query(SIZES)):
        yield table.removeprefix("accounting."), part.removeprefix("accounting."), size / 1e6
