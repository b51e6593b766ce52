"""Erase a user of an installation: in a database, or in a front and all its cells.

The front records the erasure first, and from then on takes no name of the user from a cell where it
was not carried out. The job ``share`` carries it out where a cell was lost, or was restored from a
backup.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from sqlalchemy import Connection, Engine

from accounting.db.engine import lost_connections
from accounting.db.locks import lock
from accounting.domain.client_addresses import ClientAddresses
from accounting.domain.text_escaping import unescape
from accounting.errors import AccountingError, UsageError
from accounting.front.cells import (
    connect_cell,
    errors_of_cell,
    is_for_all_cells,
    read_cells,
    require_same_revision,
)
from accounting.identities import erase as of_database
from accounting.identities import erasure_queries, user_queries
from accounting.identities.erase import ErasureResult
from accounting.identities.realm_queries import find_realm
from accounting.progress import Progress, no_progress
from accounting.sessions.stored_addresses import ReducedAddresses, reduce_stored_addresses

_COUNTS: Final = ("user_ids", "usernames", "sessions", "reports", "rejected_messages")
_AGAIN: Final = "the other cells are done: repeat this"


def erase(
    engine: Engine,
    realm: str,
    user: str,
    *,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> ErasureResult:
    """As accounting.identities.erase.erase, on a front also in all its cells.

    Raises the error of a cell that is away, before anything is erased.
    """
    with ExitStack() as stack:
        cells = _open_cells(stack, engine)
        if cells is None:
            return of_database.erase(engine, realm, user, dry_run=dry_run, progress=progress)
        if not user:
            raise UsageError("this user has no name: there is nothing to erase")
        key_is_known = False
        for cell, cell_engine in cells.items():
            with errors_of_cell(cell), lost_connections(), cell_engine.connect() as connection:
                key_is_known |= _knows(connection, realm, user)
        with (
            lost_connections(),
            engine.connect() as connection,
            connection.begin() as transaction,
        ):
            find_realm(connection, realm)
            if not (key_is_known or _knows(connection, realm, user)):
                raise user_queries.unknown_user_error(connection, realm, user)
            for name in ("rollup", "forward"):  # with which names are copied from cells
                lock(connection, name)
            user_key = erasure_queries.key_of_user(connection, unescape(realm), unescape(user))
            user_ids, usernames = erasure_queries.erase_names(connection, user_key)
            erased_at = erasure_queries.record_erasures(connection, {user_key: None})
            if dry_run:
                transaction.rollback()
        result = ErasureResult(user_key=user_key, user_ids=user_ids, usernames=usernames)

        def erase_in(cell_engine: Engine) -> None:
            nonlocal result
            if dry_run:
                with cell_engine.connect() as connection:
                    if not _knows(connection, realm, user):
                        return
                of_cell = of_database.erase(
                    cell_engine, realm, user, dry_run=True, progress=progress
                )
            else:
                of_cell = of_database.erase_named_for_front(
                    cell_engine, realm, user, erased_at, progress
                )
            sums = {name: getattr(result, name) + getattr(of_cell, name) for name in _COUNTS}
            result = replace(result, **sums)

        _in_each(cells, erase_in)
        return result


def reduce_addresses(
    engine: Engine,
    realm: str,
    setting: ClientAddresses,
    *,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> ReducedAddresses:
    """As sessions.stored_addresses.reduce_stored_addresses, on a front in all its cells."""
    with ExitStack() as stack:
        cells = _open_cells(stack, engine)
        if cells is None:
            return reduce_stored_addresses(
                engine, realm, setting, dry_run=dry_run, progress=progress
            )
        # Of the front: its rule, and what it has itself, which is nothing.
        result = reduce_stored_addresses(engine, realm, setting, dry_run=dry_run)
        kept = result.kept

        def reduce_in(cell_engine: Engine) -> None:
            nonlocal result
            of_cell = reduce_stored_addresses(
                cell_engine, realm, kept, dry_run=dry_run, progress=progress
            )
            result = ReducedAddresses(
                kept=kept,
                sessions=result.sessions + of_cell.sessions,
                reports=result.reports + of_cell.reports,
                rejected_messages=result.rejected_messages + of_cell.rejected_messages,
            )

        _in_each(cells, reduce_in)
        return result


def _open_cells(stack: ExitStack, engine: Engine) -> dict[str, Engine] | None:
    """The databases of all cells, each of which answers; None where this is no front.

    Raises UsageError in a cell: the other ones would go on to name the user.
    """
    if not is_for_all_cells(engine, "erase"):
        return None
    with lost_connections(), engine.connect() as connection:
        cells = read_cells(connection)
    engines = {}
    for cell in cells:
        with errors_of_cell(cell.cell):
            engines[cell.cell] = stack.enter_context(connect_cell(engine, cell))
            require_same_revision(engines[cell.cell])
    return engines


def _knows(connection: Connection, realm: str, user: str) -> bool:
    key = erasure_queries.key_of_user(connection, unescape(realm), unescape(user))
    return erasure_queries.has_user(connection, key)


def _in_each(cells: dict[str, Engine], step: Callable[[Engine], None]) -> None:
    """Do a step in each cell. Raises the first error, after all had their turn."""
    errors: list[AccountingError] = []
    for cell, cell_engine in cells.items():
        try:
            with errors_of_cell(cell):
                step(cell_engine)
        except AccountingError as error:
            errors.append(error)
    if errors:
        raise AccountingError(f"{errors[0]}; {_AGAIN}") from errors[0]
