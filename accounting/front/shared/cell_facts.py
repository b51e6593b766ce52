"""What a front compares of its cells: the rules of realms, the sources, erasures and the clock.

Read from the tables of a cell that is at this version's revision.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, Engine

from accounting.db.clock import database_now
from accounting.db.engine import lost_connections
from accounting.db.queries import Queries
from accounting.domain.identity import RadacctUsername
from accounting.domain.realm_rules import RealmRules
from accounting.front.cells import require_same_revision
from accounting.identities import realm_queries

_QUERIES: Final = Queries("accounting.front.shared")


@dataclass(frozen=True, slots=True, kw_only=True)
class RealmFacts:
    """A realm. ``has_usage``: any of it is accounted, so that its rules can't change before now."""

    rules: RealmRules
    radacct_username: RadacctUsername
    has_usage: bool

    def is_like(self, other: "RealmFacts") -> bool:
        """Whether both have the same rules."""
        return self.rules.is_like(other.rules) and self.radacct_username is other.radacct_username


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFacts:
    """What a front compares. ``realms`` are by their bytes.

    ``sources``: the numbers of the sources by present and former names. ``other_sources``: of other
    cells, as (cell, number) by name. ``carried_erasures``: the newest of each user that the front
    recorded and that was carried out here. ``clock_ahead_seconds``: of the database's clock, beyond
    that of the front and what the question took.
    """

    realms: Mapping[bytes, RealmFacts]
    sources: Mapping[str, int]
    other_sources: Mapping[str, tuple[str, int]]
    carried_erasures: Mapping[UUID, datetime]
    clock_ahead_seconds: float


def read_facts(engine: Engine, front: Engine) -> CellFacts:
    """Read them from a cell. Raises AccountingError for one at another revision."""
    require_same_revision(engine)
    with lost_connections(), engine.connect() as connection, front.connect() as front_connection:
        return CellFacts(
            realms=read_realms(connection),
            sources=read_sources(connection),
            other_sources={
                row.source: (row.cell, row.source_id)
                for row in connection.execute(_QUERIES.text("other_sources"))
            },
            carried_erasures=dict(connection.execute(_QUERIES.text("carried_erasures")).all()),
            clock_ahead_seconds=clock_ahead_seconds(connection, front_connection),
        )


def read_realms(connection: Connection) -> dict[bytes, RealmFacts]:
    """The realms of a cell, or of the front."""
    rules = realm_queries.all_rules(connection)
    forms = realm_queries.radacct_usernames(connection)
    with_usage = realm_queries.realms_with_usage(connection)
    return {
        realm: RealmFacts(
            rules=rules[realm_id],
            radacct_username=forms[realm_id],
            has_usage=realm_id in with_usage,
        )
        for realm, realm_id in sorted(realm_queries.realm_ids(connection).items())
    }


def read_sources(connection: Connection) -> dict[str, int]:
    """The numbers of the sources of a cell, by present and former names."""
    return {row.source: row.source_id for row in connection.execute(_QUERIES.text("read_sources"))}


def clock_ahead_seconds(connection: Connection, front_connection: Connection) -> float:
    """How far the clock of a cell is ahead of the front's at least; 0 if they may agree."""
    before = database_now(front_connection)
    now = database_now(connection)
    after = database_now(front_connection)
    if now < before:
        return (now - before).total_seconds()
    return max(0.0, (now - after).total_seconds())


def differing_realms(
    realms: Mapping[bytes, RealmFacts], of_cell: Mapping[bytes, RealmFacts]
) -> list[bytes]:
    """The realms of the front that a cell lacks, or has with other rules."""
    return [
        realm
        for realm, facts in realms.items()
        if realm not in of_cell or not facts.is_like(of_cell[realm])
    ]


def colliding_sources(
    sources: Mapping[str, int], others: Mapping[str, tuple[str, int]]
) -> list[str]:
    """The names and numbers that sources of a cell and those of others (cell, number) both have."""
    by_number = {number: (cell, name) for name, (cell, number) in others.items()}
    collisions = []
    for name, number in sources.items():
        if name in others:
            collisions.append(
                f"its source '{name}' has the name of a source of cell '{others[name][0]}'"
            )
        elif number in by_number:
            cell, other = by_number[number]
            collisions.append(
                f"its source '{name}' has the number {number}, as source '{other}' of cell '{cell}'"
            )
    return collisions


def ahead_text(seconds: float) -> str:
    """How far a clock is ahead, or behind, in words."""
    return f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'}"
