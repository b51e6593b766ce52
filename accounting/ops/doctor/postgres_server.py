"""The judgement on a Postgres: whether what is booked there lasts, and who may touch it.

Pure: facts in, findings out.
"""

from collections.abc import Iterator
from typing import Final

from accounting.ops.doctor.findings import Finding, error, ok, size, warning
from accounting.ops.doctor.postgres_facts import PostgresFacts

SUBJECT: Final = "postgres"
OLDEST_VERSION: Final = 150_000
LITTLE_DISK_BYTES: Final = 2 * 10**9
NO_DISK_BYTES: Final = 200 * 10**6


def judge_postgres(
    facts: PostgresFacts, *, head: str, disk_free_bytes: int | None
) -> Iterator[Finding]:
    """Judge a server that answers. ``disk_free_bytes``: None where its disk can't be seen."""
    number = f"{facts.version // 10_000}.{facts.version % 10_000}"
    if facts.version < OLDEST_VERSION:
        yield error(SUBJECT, "version", f"Postgres {number}", "use Postgres 15 or newer")
    else:
        yield ok(SUBJECT, "version", f"Postgres {number}")
    if facts.encoding != "UTF8":
        yield error(
            SUBJECT,
            "encoding",
            f"the database is in {facts.encoding}, which lacks names that users have",
            "make one with ENCODING 'UTF8' TEMPLATE template0, and restore into it",
        )
    if facts.in_recovery:
        yield error(
            SUBJECT,
            "writable",
            "this server is a standby, which can't be written",
            "let ACCOUNTING_DATABASE_URL name the primary: several hosts, and "
            "target_session_attrs=read-write",
        )
    yield from _durable(facts)
    yield from _schema(facts, head)
    yield _disk(facts, disk_free_bytes)


def _durable(facts: PostgresFacts) -> Iterator[Finding]:
    risky = {
        name: value
        for name, value in facts.settings.items()
        if value == "off" and name in ("fsync", "full_page_writes", "synchronous_commit")
    }
    for name in risky:
        yield error(
            SUBJECT,
            "durable",
            f"{name} is off: after a crash the books may lack what the spool has deleted",
            f"set {name} = on, also where a role or database overrides it",
        )
    if not risky:
        yield ok(SUBJECT, "durable", "what is committed stays")


def _schema(facts: PostgresFacts, head: str) -> Iterator[Finding]:
    if facts.revision != head:
        yield error(
            SUBJECT,
            "schema",
            f"at revision {facts.revision or 'none'}, this version needs {head}",
            "run `turn-accounting db upgrade`",
        )
        return
    yield ok(SUBJECT, "schema", f"at revision {head}")
    if facts.missing_roles:
        yield error(
            SUBJECT,
            "roles",
            f"without {', '.join(facts.missing_roles)}",
            "run `turn-accounting db upgrade` as a superuser",
        )
    for right in facts.lacking:
        yield error(SUBJECT, "rights", f"lacking: {right}", _grant(right))
    for right in facts.excess:
        yield warning(SUBJECT, "rights", f"too many: {right}", "revoke them: nothing needs them")
    if not (facts.missing_roles or facts.lacking or facts.excess):
        yield ok(SUBJECT, "rights", "each role has its own, and no more")
    if facts.missing_days:
        days = ", ".join(str(day) for day in facts.missing_days)
        yield warning(
            SUBJECT,
            "partitions",
            f"none for {days}",
            "let `turn-accounting schedule` run, or run `turn-accounting job run partitions`",
        )
    else:
        yield ok(SUBJECT, "partitions", "made for today and the days to come")


def _grant(right: str) -> str:
    if right.startswith("turn_accounting_"):
        return "restore the grants: a restore with --no-privileges, or a GRANT by hand, lost them"
    return "GRANT turn_accounting_writer TO this user"


def _disk(facts: PostgresFacts, free: int | None) -> Finding:
    books = f"the books take {size(facts.size_bytes)}"
    if free is None:
        return ok(SUBJECT, "disk", f"{books}; what is free can't be seen from here")
    seen = f"{books}, {size(free)} are free"
    advice = "make room: until then the spool grows instead"
    if free < NO_DISK_BYTES:
        return error(SUBJECT, "disk", seen, advice)
    if free < LITTLE_DISK_BYTES:
        return warning(SUBJECT, "disk", seen, advice)
    return ok(SUBJECT, "disk", seen)
