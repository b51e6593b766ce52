"""The check of a source's identity: whether this Redis belongs to it, and not to another source."""

from collections.abc import Iterator
from typing import Final

from accounting.db.engine import lost_connections, open_engine
from accounting.domain.server_identity import ServerIdentity
from accounting.errors import AccountingError
from accounting.ops.doctor.findings import Finding, error, ok
from accounting.sources.identity import find_conflict

COMPONENT: Final = "redis"


def check_identity(database_url: str, source: str, server: ServerIdentity) -> Iterator[Finding]:
    """Check that a server has no history of another source; nothing where one can't be compared.

    The check of Postgres reports a database that can't be asked.
    """
    if not server.histories:
        return
    engine = open_engine(database_url)
    try:
        with lost_connections(), engine.connect() as connection:
            conflict = find_conflict(connection, source, server)
    except AccountingError:
        return
    finally:
        engine.dispose()
    if conflict is None:
        yield ok(COMPONENT, "identity", f"{server} is of source {source!r} only")
    else:
        observed, _, advice = str(conflict).partition(": ")
        yield error(COMPONENT, "identity", observed, advice)
