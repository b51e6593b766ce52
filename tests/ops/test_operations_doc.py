"""The pages for operators have every gap cause and table, and sufficient rights."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import redis

from accounting.domain.gap_causes import CAUSES
from accounting.ops.doctor import Level
from accounting.ops.doctor.redis_probe import probe_redis
from accounting.ops.doctor.redis_server import CaptureMode, check_redis
from tests.support.books import Books
from tests.support.servers import RedisServer, ValkeyServer

ROOT: Final = Path(__file__).parents[2]
OPERATIONS: Final = (ROOT / "docs/operations.md").read_text()
GROWTH: Final = (ROOT / "docs/reference/growth.md").read_text()
PROOFS: Final = (ROOT / "docs/reference/proofs.md").read_text()
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


def test_the_doc_has_every_cause_of_a_gap() -> None:
    causes = set(gap_causes())
    section = OPERATIONS.split("\n## Gaps\n", 1)[1].split("\n## ", 1)[0]
    assert sorted(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == sorted(causes)
    assert set(CAUSES) == causes


def test_the_doc_has_a_bound_for_every_table(books: Books) -> None:
    tables_of_the_page, _, _ = GROWTH.partition("\nFiles of the data directory")
    found = re.findall(r"^\| `(\w+)` \| \S", tables_of_the_page, re.MULTILINE)
    assert found == all_tables(books)


def test_the_doc_says_of_every_table_what_proves_it(books: Books) -> None:
    """A new table has to be there, and to be compared where something is read from it."""
    cells = re.findall(r"^\| (`.*?) \| \S", PROOFS, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(cells))) == all_tables(books)


def all_tables(books: Books) -> list[str]:
    rows = books.query(
        "SELECT relname FROM pg_class WHERE relnamespace = 'accounting'::regnamespace"
        " AND relkind IN ('r', 'p') AND NOT relispartition"
    )
    return sorted(row["relname"] for row in rows)


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
