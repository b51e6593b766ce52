"""The check of a Postgres: whether commits are durable, and whether the privileges are right."""

from collections.abc import Iterator
from typing import Final

from accounting.ops.doctor.findings import Finding, error, format_bytes, ok, warning
from accounting.ops.doctor.postgres_facts import Login, PostgresFacts

COMPONENT: Final = "postgres"
MIN_VERSION: Final = 150_000
DISK_LOW_BYTES: Final = 2 * 10**9
DISK_FULL_BYTES: Final = 200 * 10**6


def check_postgres(
    facts: PostgresFacts, *, head: str, disk_free_bytes: int | None, captures: bool = True
) -> Iterator[Finding]:
    """Check a server that answers. ``disk_free_bytes``: None where its disk isn't accessible.

    ``captures``: not a front, which has no reports of its own.
    """
    version = f"Postgres {facts.version // 10_000}.{facts.version % 10_000}"
    if facts.version < MIN_VERSION:
        yield error(COMPONENT, "version", version, "use Postgres 15 or newer")
    else:
        yield ok(COMPONENT, "version", version)
    if facts.encoding != "UTF8":
        yield error(
            COMPONENT,
            "encoding",
            f"the database is in {facts.encoding}, which can't store all usernames",
            "make one with ENCODING 'UTF8' TEMPLATE template0, and restore into it",
        )
    if facts.in_recovery:
        yield error(
            COMPONENT,
            "writable",
            "this server is a standby, which can't be written",
            "set ACCOUNTING_DATABASE_URL to the primary: several hosts, and "
            "target_session_attrs=read-write",
        )
    elif facts.read_only:
        yield error(
            COMPONENT,
            "writable",
            "default_transaction_read_only is on: the loader and the jobs wait until it is off",
            "find what set it (the server, this database or this user): some providers set it "
            "when a disk is full",
        )
    yield from _check_durability(facts)
    yield _check_login(facts.login)
    if facts.login.sees_tables:
        yield from _check_schema(facts, head, captures=captures)
    yield _check_disk(facts, disk_free_bytes)


def _check_login(login: Login) -> Finding:
    """What is true of the user of the URL; whether each role has its rights is another check."""
    check, service = "login", "a login with the role turn_accounting_writer"
    if login.is_superuser or login.is_owner:
        rights = "a superuser" if login.is_superuser else "the owner of the books"
        return warning(
            COMPONENT,
            check,
            f"{login.name} is {rights}, which may change reports and the schema",
            f"for the service, set ACCOUNTING_DATABASE_URL to {service}; it needs no more. Keep "
            f"this one for `turn-accounting db upgrade`",
        )
    if login.is_writer:
        return ok(COMPONENT, check, f"{login.name} has the rights of the service")
    if login.is_reader:
        return ok(
            COMPONENT,
            check,
            f"{login.name} reads the views and nothing else, which is right for reports; schema, "
            f"grants, jobs and sources can only be checked by {service}",
        )
    return error(
        COMPONENT,
        check,
        f"{login.name} has none of the roles",
        f"GRANT turn_accounting_writer TO {login.name} for the service, or turn_accounting_reader "
        "for reports",
    )


def _check_durability(facts: PostgresFacts) -> Iterator[Finding]:
    disabled = [name for name, value in facts.settings.items() if value == "off"]
    for name in disabled:
        yield error(
            COMPONENT,
            "durable",
            f"{name} is off: after a crash the books may lack reports that the spool has deleted",
            f"set {name} = on, also where a role or database overrides it",
        )
    if not disabled:
        yield ok(COMPONENT, "durable", "commits survive a crash")


def _check_schema(facts: PostgresFacts, head: str, *, captures: bool) -> Iterator[Finding]:
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
            f"missing: {', '.join(facts.missing_roles)}",
            "run `turn-accounting db upgrade` as a superuser",
        )
    for privilege in facts.missing_privileges:
        yield error(COMPONENT, "rights", f"missing: {privilege}", _grant_advice(privilege))
    for privilege in facts.excess_privileges:
        yield warning(
            COMPONENT, "rights", f"too many: {privilege}", "revoke them: nothing needs them"
        )
    if not (facts.missing_roles or facts.missing_privileges or facts.excess_privileges):
        yield ok(COMPONENT, "rights", "each role has exactly its own")
    if captures and facts.days_without_partition:
        days = ", ".join(str(day) for day in facts.days_without_partition)
        yield warning(
            COMPONENT,
            "partitions",
            f"none for {days}",
            "let `turn-accounting schedule` run, or run `turn-accounting job run partitions`",
        )
    elif captures:
        yield ok(COMPONENT, "partitions", "exist for today and the coming days")


def _grant_advice(privilege: str) -> str:
    if privilege.startswith("turn_accounting_"):
        return "restore the grants: a restore with --no-privileges, or a REVOKE, removed them"
    return "GRANT turn_accounting_writer TO this user"


def _check_disk(facts: PostgresFacts, free_bytes: int | None) -> Finding:
    size = f"the books take {format_bytes(facts.size_bytes)}"
    if free_bytes is None:
        return ok(COMPONENT, "disk", f"{size}; the free space can't be seen from here")
    observed = f"{size}, {format_bytes(free_bytes)} are free"
    advice = "make room: until then the spool grows instead"
    if free_bytes < DISK_FULL_BYTES:
        return error(COMPONENT, "disk", observed, advice)
    if free_bytes < DISK_LOW_BYTES:
        return warning(COMPONENT, "disk", observed, advice)
    return ok(COMPONENT, "disk", observed)
