"""Set and remove the rules of a realm for an installation: a database, or a front and its cells.

On a front a change holds in all cells from the same time. It is prepared in all of them, with
whatever reads rules standing still, and then committed: in the front first, whose rules the job
``share`` brings to a cell that was lost in between.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import date
from typing import Any, Final

from sqlalchemy import Connection, Engine

from accounting.db.engine import lost_connections
from accounting.db.locks import lock
from accounting.domain.client_addresses import ClientAddresses
from accounting.domain.identity import RadacctUsername
from accounting.domain.realm_rules import RealmRule
from accounting.domain.text_escaping import unescape
from accounting.errors import AccountingError
from accounting.front.cells import (
    Cell,
    connect_cell,
    errors_of_cell,
    is_for_all_cells,
    read_cells,
    require_same_revision,
)
from accounting.front.shared.cell_facts import read_realms
from accounting.front.shared.share import put_realm
from accounting.identities import radacct_names, realm_queries, realm_rules
from accounting.identities.realm_rules import ChangedRules

_WHAT: Final = "set the rules of realms"
LEAD_SECONDS: Final = 3600
"""How long a change of rules leaves a cell that was lost to come back, before it holds."""


def set_rules(
    engine: Engine,
    realm: str,
    changes: Mapping[str, Any],
    *,
    default: RealmRule,
    holds_from: date | None = None,
    client_addresses: ClientAddresses | None = None,
    radacct_username: RadacctUsername | None = None,
) -> ChangedRules | None:
    """As realm_rules.set_rule and set_radacct_username, on a front for all its cells.

    None where only the form of usernames in ``radacct`` changes. Raises UsageError in a cell, whose
    rules are those of its front, and the error of a cell that is away or refuses the change: then
    nothing is changed anywhere.
    """
    changes_rules = bool(changes) or client_addresses is not None
    if not is_for_all_cells(engine, _WHAT):
        changed = None
        if changes_rules:
            changed = realm_rules.set_rule(
                engine,
                realm,
                changes,
                default=default,
                holds_from=holds_from,
                client_addresses=client_addresses,
            )
        if radacct_username is not None:
            radacct_names.set_radacct_username(engine, realm, radacct_username)
        return changed
    with _locked_cells(engine) as (connection, cells):
        changed = None
        if changes_rules:
            changed = realm_rules.change_rules(
                connection,
                realm,
                changes,
                default=default,
                holds_from=holds_from,
                client_addresses=client_addresses,
                accounted_elsewhere=_accounted_until(realm, cells),
                lead_seconds=LEAD_SECONDS,
            )
        if radacct_username is not None:
            radacct_names.name_users(connection, realm, radacct_username)
        facts = read_realms(connection)[unescape(realm)]
        for cell, cell_connection in cells.items():
            with errors_of_cell(cell), lost_connections():
                put_realm(cell_connection, unescape(realm), facts)
        with lost_connections():
            connection.commit()
        _commit_cells(cells)
        return changed


def remove_realm(engine: Engine, realm: str) -> None:
    """As realm_rules.remove_realm, on a front in all its cells.

    Where it is interrupted, the job ``share`` brings the realm back from where it is left.
    """
    if not is_for_all_cells(engine, _WHAT):
        realm_rules.remove_realm(engine, realm)
        return
    with _locked_cells(engine) as (connection, cells):
        for cell, cell_connection in cells.items():
            with errors_of_cell(cell), lost_connections():
                if realm in realm_queries.names_by_id(cell_connection).values():
                    realm_rules.delete_realm(cell_connection, realm)
        realm_rules.delete_realm(connection, realm)
        _commit_cells(cells)
        with lost_connections():
            connection.commit()


@contextmanager
def _locked_cells(engine: Engine) -> Iterator[tuple[Connection, dict[str, Connection]]]:
    """A transaction on the front and one in each cell, with the locks of what reads rules.

    They are rolled back at the end, unless they are committed. Cells are locked in their order by
    name, the front before.
    """
    with ExitStack() as stack:
        with lost_connections():
            connection = stack.enter_context(engine.connect())
            lock(connection, "cells")
            realm_rules.lock_rules(connection)
            cells = read_cells(connection)
        connections = {}
        for cell in cells:
            with errors_of_cell(cell.cell), lost_connections():
                connections[cell.cell] = _lock_cell(stack, engine, cell)
        yield connection, connections


def _lock_cell(stack: ExitStack, engine: Engine, cell: Cell) -> Connection:
    cell_engine = stack.enter_context(connect_cell(engine, cell))
    require_same_revision(cell_engine)
    connection = stack.enter_context(cell_engine.connect())
    realm_rules.lock_rules(connection)
    return connection


def _accounted_until(realm: str, cells: Mapping[str, Connection]) -> int | None:
    """Up to when usage of a realm is accounted in any cell."""
    times = []
    for cell, connection in cells.items():
        with errors_of_cell(cell), lost_connections():
            ids = {name: number for number, name in realm_queries.names_by_id(connection).items()}
            if realm in ids:
                times.append(realm_queries.accounted_until(connection, ids[realm]))
    return max((time for time in times if time is not None), default=None)


def _commit_cells(cells: Mapping[str, Connection]) -> None:
    """Commit in all cells. Raises the first error, after all were tried."""
    errors: list[AccountingError] = []
    for cell, connection in cells.items():
        try:
            with errors_of_cell(cell), lost_connections():
                connection.commit()
        except AccountingError as error:
            errors.append(error)
    if errors:
        raise AccountingError(
            f"{errors[0]}; the job `share` of the front completes this when the cell answers"
        ) from errors[0]
