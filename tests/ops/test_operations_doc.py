"""The pages for operators have every gap cause, metric and table, and sufficient rights."""

import ast
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
import redis

from accounting.domain.gap_causes import CAUSES
from accounting.ops.doctor import Level
from accounting.ops.doctor.redis_probe import probe_redis
from accounting.ops.doctor.redis_server import CaptureMode, check_redis
from accounting.usage.limits.limit_rules import set_limit
from accounting.webhooks.endpoints import add_endpoint
from tests.support.books import Books, channel, status_payload, traffic_payload
from tests.support.monitoring import checkpoint_now, metrics_of, read_snapshot, settings_for
from tests.support.servers import RedisServer, ValkeyServer

ROOT: Final = Path(__file__).parents[2]
OPERATIONS: Final = (ROOT / "docs/operations.md").read_text()
GROWTH: Final = (ROOT / "docs/reference/growth.md").read_text()
REDIS: Final = (ROOT / "docs/redis.md").read_text()


def gap_causes() -> Iterator[str]:
    """Every cause of a gap in the code."""
    for path in (ROOT / "accounting").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            for expression in cause_expressions(node):
                match expression:
                    case ast.Constant(value=str(cause)):
                        yield cause
                    case ast.IfExp(body=ast.Constant(value=one), orelse=ast.Constant(value=other)):
                        yield from (str(one), str(other))


def cause_expressions(node: ast.AST) -> Iterator[ast.expr | None]:
    """The expressions of the causes in a node that records a gap."""
    match node:
        case ast.Call(func=ast.Name("SourceLost" | "SourceRefused" | "NoReply"), args=[cause, *_]):
            yield cause
        case ast.Call(func=ast.Name("open_gap_if_needed"), args=[_, cause, *_]):
            yield cause
        case ast.Call(func=ast.Attribute(attr="upsert_gap"), keywords=keywords):
            yield from (keyword.value for keyword in keywords if keyword.arg == "cause")
        case ast.AnnAssign(target=ast.Name("DAMAGED_SPOOL"), value=cause):
            yield cause
        case ast.FunctionDef(name="gap_cause"):
            yield from (one.value for one in ast.walk(node) if isinstance(one, ast.Return))


def first_column(heading: str) -> list[str]:
    """The first cells of the table under a heading, without the labels in braces."""
    section = OPERATIONS.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| `(\w+)", section, re.MULTILINE)


def test_the_doc_has_every_cause_of_a_gap() -> None:
    causes = set(gap_causes())
    assert sorted(first_column("Gaps")) == sorted(causes)
    assert set(CAUSES) == causes


def test_the_doc_has_a_bound_for_every_table(books: Books) -> None:
    tables = books.query(
        "SELECT relname FROM pg_class WHERE relnamespace = 'accounting'::regnamespace"
        " AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY relname"
    )
    tables_of_the_page, _, _ = GROWTH.partition("\nFiles of the data directory")
    assert re.findall(r"^\| `(\w+)` \| \S", tables_of_the_page, re.MULTILINE) == [
        row["relname"] for row in tables
    ]


def test_the_doc_has_exactly_the_served_metrics(books: Books) -> None:
    settings_for(books)
    books.start = datetime.now(UTC)
    books.receive(-2, channel("status"), status_payload("new"))
    books.receive(-1, channel("traffic"), traffic_payload(1, 1, 1, 1))
    books.receive(-1, channel("traffic"), b"nonsense")
    checkpoint_now(books)
    books.run_jobs()
    books.spool().open_gap(books.micros_at(0), "disconnected")
    books.load()
    with books.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO accounting.job_runs (job, runs, last_succeeded_at, last_seconds)"
            " VALUES ('settle', 1, now(), 1)"
        )
        connection.exec_driver_sql(
            "INSERT INTO accounting.source_leases"
            " SELECT source_id, 'x', 'y', now(), now() + '1 min', 0 FROM accounting.sources"
            " ON CONFLICT DO NOTHING"
        )
    set_limit(books.engine, "example.org", measure="bytes", per="day", amount=1)
    add_endpoint(books.engine, url="https://billing.example.org/")
    served = {
        name for name, *_ in metrics_of(read_snapshot(books)) if not name.startswith("process_")
    }
    assert sorted(first_column("Metrics")) == sorted(served)


@pytest.fixture(
    scope="module", params=["valkey", pytest.param("redis", marks=pytest.mark.needs_redis)]
)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    new_server = ValkeyServer() if request.param == "valkey" else RedisServer()
    with new_server as running:
        yield running


@pytest.mark.parametrize(("number", "mode"), [(0, "replication"), (1, "subscribe")])
def test_the_rights_in_the_doc_are_sufficient(
    server: RedisServer, number: int, mode: CaptureMode
) -> None:
    rules = re.findall(r"```redis\n(ACL SETUSER accounting .*)\n```", REDIS)
    assert len(rules) == 2
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "accounting", "reset")
        client.execute_command(*rules[number].replace("PASSWORD", "secret").split())
    url = server.url.replace("://", "://accounting:secret@")
    facts, clock = probe_redis(url, "here")
    findings = {one.check: one for one in check_redis(facts, mode=mode, live_sessions=0)}
    assert findings["mode"].level is Level.OK, findings["mode"]
    assert findings["rights"].level is Level.OK, findings["rights"]
    assert clock is None
