"""The judgement on a Postgres: whether what is booked there lasts, and who may touch it.

Pure: facts in, findings out.
"""

from collections.abc import Iterator
from typing import Final

from accounting.ops.doctor.findings import Finding, error, format_bytes, ok, warning
from accounting.ops.doctor.postgres_facts import PostgresFacts

COMPONENT: Final = "postgres"
MIN_VERSION: Final = 150_000
DISK_LOW_BYTES: Final = 2 * 10**9
DISK_FULL_BYTES: Final = 200 * 10**6


def check_postgres(
    facts: PostgresFacts, *, head: str, disk_free_bytes: int | None
) -> Iterator[Finding]:
    """Judge a server that answers. ``disk_free_bytes``: None where its disk can't be seen."""
    number = f"{facts.version // 10_000}.{facts.version % 10_000}"
    if facts.version < MIN_VERSION:
        yield error(COMPONENT, "version", f"Postgres {number}", "use Postgres 15 or newer")
    else:
        yield ok(COMPONENT, "version", f"Postgres {number}")
    if facts.encoding != "UTF8":
        yield error(
            COMPONENT,
            "encoding",
            f"the database is in {facts.encoding}, which lacks names that users have",
            "make one with ENCODING 'UTF8' TEMPLATE template0, and restore into it",
        )
    if facts.in_recovery:
        yield error(
            COMPONENT,
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
            COMPONENT,
            "durable",
            f"{name} is off: after a crash the books may lack what the spool has deleted",
            f"set {name} = on, also where a role or database overrides it",
        )
    if not risky:
        yield ok(COMPONENT, "durable", "what is committed stays")


def _schema(facts: PostgresFacts, head: str) -> Iterator[Finding]:
    if facts.revision != head:
        yield error(
            COMPONENT,
            "schema",
            f"at revision {facts.revision or 'none'}, this version needs {head}",
            "run `turn-accounting db upgrade`",
        )
        return
    yield ok(COMPONENT, "schema", f"at revision {head}")
    if facts.missing_roles:
        yield error(
            COMPONENT,
            "roles",
            f"without {', '.join(facts.missing_roles)}",
            "run `turn-accounting db upgrade` as a superuser",
        )
    for right in facts.missing_privileges:
        yield error(COMPONENT, "rights", f"lacking: {right}", _grant(right))
    for right in facts.excess_privileges:
        yield warning(COMPONENT, "rights", f"too many: {right}", "revoke them: nothing needs them")
    if not (facts.missing_roles or facts.missing_privileges or facts.excess_privileges):
        yield ok(COMPONENT, "rights", "each role has its own, and no more")
    if facts.days_without_partition:
        days = ", ".join(str(day) for day in facts.days_without_partition)
        yield warning(
            COMPONENT,
            "partitions",
            f"none for {days}",
            "let `turn-accounting schedule` run, or run `turn-accounting job run partitions`",
        )
    else:
        yield ok(COMPONENT, "partitions", "made for today and the days to come")


def _grant(right: str) -> str:
    if right.startswith("turn_accounting_"):
        return "restore the grants: a restore with --no-privileges, or a GRANT by hand, lost them"
    return "GRANT turn_accounting_writer TO this user"


def _disk(facts: PostgresFacts, free: int | None) -> Finding:
    books = f"the books take {format_bytes(facts.size_bytes)}"
    if free is None:
        return ok(COMPONENT, "disk", f"{books}; what is free can't be seen from here")
    seen = f"{books}, {format_bytes(free)} are free"
    advice = "make room: until then the spool grows instead"
    if free < DISK_FULL_BYTES:
        return error(COMPONENT, "disk", seen, advice)
    if free < DISK_LOW_BYTES:
        return warning(COMPONENT, "disk", seen, advice)
    return ok(COMPONENT, "disk", seen)
