"""What all cells of a front share: the rules of realms, the names of sources, and erasures.

The front's own tables say what holds; the job ``share`` brings each cell to it, also where a
command was interrupted. A realm that a cell saw first comes to the front with the cell's rules.
A cell that does not answer, or refuses, does not keep the others from it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, Engine

from accounting.db.engine import lost_connections
from accounting.db.locks import lock
from accounting.db.queries import Queries
from accounting.db.revisions import head_revision
from accounting.domain.client_addresses import stricter
from accounting.domain.identity import RadacctUsername
from accounting.domain.text_escaping import escape
from accounting.errors import AccountingError
from accounting.front.cell_views import import_changed_views
from accounting.front.cells import Cell, open_cell, read_cells, require_front
from accounting.front.shared.cell_facts import (
    CellFacts,
    RealmFacts,
    differing_realms,
    read_facts,
    read_realms,
)
from accounting.identities import realm_queries
from accounting.identities.erase import erase_for_front
from accounting.identities.radacct_names import name_users
from accounting.identities.realm_rules import lock_rules, put_rules

_QUERIES: Final = Queries("accounting.front.shared")


def share(engine: Engine) -> int:
    """Bring all cells to what they share; returns how many things changed in cells.

    Raises the first error after all cells had their turn.
    """
    with lost_connections(), engine.connect() as connection:
        require_front(connection)
        cells = read_cells(connection)
    errors: list[AccountingError] = []
    facts: dict[str, CellFacts] = {}
    changed = 0
    for cell in cells:
        try:
            changed += import_changed_views(engine, cell)
            facts[cell.cell] = _read(engine, cell)
        except AccountingError as error:
            errors.append(error)
    take_up(engine, facts)
    for cell in cells:
        if cell.cell in facts:
            try:
                changed += _share_with(engine, cell, facts[cell.cell])
            except AccountingError as error:
                errors.append(error)
    if errors:
        raise errors[0]
    return changed


def share_with_cell(engine: Engine, cell: Cell) -> None:
    """The same for one cell that has just joined, unless it is still at another revision."""
    if cell.revision == head_revision():
        facts = _read(engine, cell)
        _take_stricter_addresses(engine, facts)
        take_up(engine, {cell.cell: facts})
        _share_with(engine, cell, facts)


def _read(engine: Engine, cell: Cell) -> CellFacts:
    with open_cell(engine, cell) as cell_engine:
        return read_facts(cell_engine, engine)


def _take_stricter_addresses(engine: Engine, facts: CellFacts) -> None:
    """Of a realm that both have: no cell begins to store addresses because another one does."""
    with lost_connections(), engine.begin() as connection:
        for realm, realm_id in realm_queries.realm_ids(connection).items():
            if realm in facts.realms:
                kept = facts.realms[realm].rules.client_addresses
                rule = realm_queries.read_rules(connection, realm_id).client_addresses
                realm_queries.set_client_addresses(connection, realm_id, stricter(kept, rule))


def take_up(engine: Engine, facts: Mapping[str, CellFacts]) -> None:
    """Record in the front the sources of cells, and the realms that a cell saw first.

    Of several cells that have a realm, the rules are those of one with usage, which can't change.
    """
    with lost_connections(), engine.begin() as connection:
        lock(connection, "rollup")
        for cell, of_cell in facts.items():
            record_sources(connection, cell, of_cell.sources)
        known = read_realms(connection)
        is_bare = any(facts.radacct_username is RadacctUsername.USER for facts in known.values())
        by_rank = sorted(
            (not realm_facts.has_usage, cell, realm, realm_facts)
            for cell, of_cell in facts.items()
            for realm, realm_facts in of_cell.realms.items()
            if realm not in known
        )
        taken_up: set[bytes] = set()
        for _, _, realm, realm_facts in by_rank:
            if realm in taken_up:
                continue
            taken_up.add(realm)
            put_rules(connection, realm, realm_facts.rules)
            if realm_facts.radacct_username is RadacctUsername.USER and not is_bare:
                name_users(connection, escape(realm), RadacctUsername.USER)
                is_bare = True


def record_sources(connection: Connection, cell: str, sources: Mapping[str, int]) -> None:
    """Record the sources of a cell in the front."""
    rows = connection.execute(_QUERIES.text("sources_of_cells")).all()
    if {row.source: row.source_id for row in rows if row.cell == cell} == sources:
        return
    connection.execute(_QUERIES.text("forget_sources_of_cell"), {"cell": cell})
    connection.execute(
        _QUERIES.text("record_sources_of_cell"),
        {"cell": cell, "sources": list(sources), "source_ids": list(sources.values())},
    )


def sources_of_other_cells(connection: Connection, cell: str) -> dict[str, tuple[str, int]]:
    """The sources of the other cells as the front knows them: (cell, number) by name."""
    rows = connection.execute(_QUERIES.text("sources_of_cells"))
    return {row.source: (row.cell, row.source_id) for row in rows if row.cell != cell}


def record_other_sources(connection: Connection, others: Mapping[str, tuple[str, int]]) -> None:
    """Record in a cell the sources of the others."""
    connection.execute(_QUERIES.text("forget_other_sources"))
    connection.execute(
        _QUERIES.text("record_other_sources"),
        {
            "sources": list(others),
            "cells": [cell for cell, _ in others.values()],
            "source_ids": [number for _, number in others.values()],
        },
    )


def _share_with(engine: Engine, cell: Cell, facts: CellFacts) -> int:
    """Bring one cell to what all share. Raises the first error after all was tried."""
    errors: list[AccountingError] = []
    changed = 0
    with lost_connections(), engine.connect() as connection:
        others = sources_of_other_cells(connection, cell.cell)
        realms = read_realms(connection)
        erasures = read_erasures(connection)
    with open_cell(engine, cell) as cell_engine:
        if others != facts.other_sources:
            with lost_connections(), cell_engine.begin() as connection:
                record_other_sources(connection, others)
            changed += 1
        for realm in differing_realms(realms, facts.realms):
            try:
                with lost_connections(), cell_engine.begin() as connection:
                    lock_rules(connection)
                    put_realm(connection, realm, realms[realm])
                changed += 1
            except AccountingError as error:
                errors.append(error)
        changed += erase_for_front(cell_engine, lacking_erasures(facts, erasures))
        if errors:
            raise errors[0]
    return changed


def read_erasures(connection: Connection) -> dict[UUID, datetime]:
    """When the front recorded the newest erasure of each user."""
    return dict(connection.execute(_QUERIES.text("erasures_of_front")).all())


def lacking_erasures(facts: CellFacts, erasures: Mapping[UUID, datetime]) -> dict[UUID, datetime]:
    """Those that were not carried out in a cell, or were lost when it was restored."""
    never = datetime.min.replace(tzinfo=UTC)
    return {
        user_key: erased_at
        for user_key, erased_at in erasures.items()
        if facts.carried_erasures.get(user_key, never) < erased_at
    }


def put_realm(connection: Connection, realm: bytes, facts: RealmFacts) -> None:
    """Give a realm of a cell the rules of the front, in a transaction that has locked them."""
    put_rules(connection, realm, facts.rules)
    forms = {
        name: form
        for name, form in realm_queries.radacct_usernames_by_name(connection).items()
        if form is RadacctUsername.USER
    }
    name = escape(realm)
    if (name in forms) == (facts.radacct_username is RadacctUsername.USER):
        return
    for other in forms:  # only one can be so, and it is the realm that is so on the front
        name_users(connection, other, RadacctUsername.USER_AT_REALM)
    name_users(connection, name, facts.radacct_username)
