"""What the database of a cell knows of its front: the key that they share, and its name."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import date
from typing import Final, NamedTuple
from uuid import UUID

from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import ProgrammingError

from accounting.db import migrations
from accounting.db.clock import CLOCK_TOLERANCE_SECONDS
from accounting.db.engine import lost_connections
from accounting.db.queries import Queries
from accounting.db.revisions import head_revision
from accounting.errors import NotAllowed, UsageError
from accounting.front.cells import read_membership
from accounting.front.first_billed import check_begins_a_period, check_first_billed
from accounting.front.shared import cell_facts, share

_QUERIES: Final = Queries("accounting.front")


class CellDatabase(NamedTuple):
    """The database of a cell. ``revision``: of its schema."""

    revision: str
    database_id: UUID


def prepare_cell(
    stack: ExitStack,
    engine: Engine,
    front_connection: Connection,
    front: "FrontIdentity",
    name: str,
    known: Mapping[UUID, str | None],
    joined: UUID | None,
    bill_from: date | None,
) -> tuple[CellDatabase, Connection]:
    """Make a database a cell of a front, in the transaction of the connection that is returned.

    It ends with the stack, rolled back unless it is committed.
    A database without a schema gets it. Its key becomes that of the installation, while no name
    was made into a key by its own; the key of the first cell may become the installation's.
    ``known``: the databases of the other cells, with the names of those that have not left.
    ``joined``: the database that has this name, if one has joined. ``bill_from``: the first period
    that the front bills of it, if the operator said so. Raises UsageError for a database that can't
    be joined. What differs in a cell that joined before is a
    problem that `doctor` names.
    """
    is_new = joined is None
    revision = migrations.current_revision(engine)
    if joined is not None:
        _check_database(engine, name, joined, has_schema=revision is not None)
    if revision is None:
        revision = migrations.upgrade(engine)
    elif revision > head_revision():
        raise UsageError(
            f"is at revision {revision}, and this version knows {head_revision()}: "
            "bring the front to its version first"
        )
    with lost_connections():
        connection = stack.enter_context(engine.connect())
        if connection.execute(_QUERIES.text("is_front")).scalar_one():
            raise UsageError("is a front itself")
        _check_membership(connection, front, known)
        if is_new:
            _check_collation(connection, front)
        _share_identity_key(connection, front)
        database_id = _own_database_id(connection, known)
        if is_new:
            _check_clock(connection, front_connection)
        if bill_from is not None:
            check_begins_a_period(connection, bill_from)
        elif is_new:
            check_first_billed(connection, front_connection, name, database_id)
        if is_new and revision == head_revision():
            _check_sources(connection, front_connection, name)
            _check_rules(connection, front_connection)
        connection.execute(_QUERIES.text("join_front"), {"front": front.uri, "cell": name})
    return CellDatabase(revision, database_id), connection


def _check_database(engine: Engine, name: str, joined: UUID, *, has_schema: bool) -> None:
    if has_schema and read_database_id(engine) == joined:
        return
    raise UsageError(
        "is another database than the one that joined under this name, whose usage would be in no "
        f"statement: let that one leave first, `turn-accounting front leave {name}`"
    )


def _check_clock(connection: Connection, front_connection: Connection) -> None:
    ahead = cell_facts.clock_ahead_seconds(connection, front_connection)
    if abs(ahead) > CLOCK_TOLERANCE_SECONDS:
        raise UsageError(
            f"its database's clock is {cell_facts.ahead_text(ahead)} the front's: set the clocks "
            "of both machines, since rules and periods begin everywhere at once"
        )


def _check_sources(connection: Connection, front_connection: Connection, name: str) -> None:
    """Names of sources are in statements, and their numbers in the ids of sessions."""
    collisions = cell_facts.colliding_sources(
        cell_facts.read_sources(connection), share.sources_of_other_cells(front_connection, name)
    )
    if collisions:
        raise UsageError(
            f"{collisions[0]}: sources of one front have different names and numbers, and what "
            "was captured keeps both, so only a database without that source can join"
        )


def _check_rules(connection: Connection, front_connection: Connection) -> None:
    realms = cell_facts.read_realms(front_connection)
    of_cell = cell_facts.read_realms(connection)
    for realm in cell_facts.differing_realms(realms, of_cell):
        if realm not in of_cell:
            continue
        try:
            with connection.begin_nested() as attempt:
                share.put_realm(connection, realm, realms[realm])
                attempt.rollback()
        except UsageError as error:
            raise UsageError(
                f"{error}: only a realm that is ruled as on the front can be billed as one; if the "
                "front has no usage of it, remove it there before: `turn-accounting realm remove`"
            ) from error


def read_database_id(engine: Engine) -> UUID:
    """Which database of the installation a cell is."""
    with lost_connections(), engine.connect() as connection:
        database_id: UUID = connection.execute(_QUERIES.text("database_id")).scalar_one()
    return database_id


def forget_front(engine: Engine, front: "FrontIdentity") -> None:
    """Let a database be no cell of this front any more. It keeps its key and its books."""
    with lost_connections(), engine.begin() as connection:
        connection.execute(_QUERIES.text("leave_front"), {"front": front.uri})


class FrontIdentity:
    """What all databases of an installation share. ``uri``: a hash of the key."""

    def __init__(self, connection: Connection) -> None:
        """Read it from the front. The connection has the rights of the writer."""
        self._connection = connection
        self.key = bytes(connection.execute(_QUERIES.text("identity_key")).scalar_one())
        self.uri: str = connection.execute(_QUERIES.text("installation_uri")).scalar_one()
        self.collation: str = connection.execute(_QUERIES.text("database_collation")).scalar_one()

    def take_key(self, key: bytes) -> bool:
        """Make the key of the first cell that of the installation; returns whether it could.

        Not once the front knows a cell, or a user by its own key. The connection has the rights of
        the owner.
        """
        connection = self._connection
        if connection.execute(_QUERIES.text("has_keys")).scalar_one():
            return False
        connection.execute(_QUERIES.text("become_owner"))
        connection.execute(_QUERIES.text("set_identity_key"), {"key": key})
        connection.execute(_QUERIES.text("reset_role"))
        self.key = key
        self.uri = connection.execute(_QUERIES.text("installation_uri")).scalar_one()
        return True


def _check_collation(connection: Connection, front: FrontIdentity) -> None:
    collation = connection.execute(_QUERIES.text("database_collation")).scalar_one()
    if collation != front.collation:
        raise UsageError(
            f"sorts texts by another collation ({collation}) than the front ({front.collation}), "
            "which merges sorted lists: make the front, or the cell, with the other's locale, on "
            "the same kind of system"
        )


def _check_membership(
    connection: Connection, front: FrontIdentity, known: Mapping[UUID, str | None]
) -> None:
    """Of this front it may be a cell that left while it was away, or that never quite joined."""
    membership = read_membership(connection)
    if membership is None:
        return
    if membership.front != front.uri:
        raise UsageError(
            f"is the cell '{membership.cell}' of another front: let it leave that one first"
        )
    database_id = connection.execute(_QUERIES.text("database_id")).scalar_one()
    if (cell := known.get(database_id)) is not None:
        raise UsageError(f"is the cell '{cell}' of this front already")


def _share_identity_key(connection: Connection, front: FrontIdentity) -> None:
    uri = connection.execute(_QUERIES.text("installation_uri")).scalar_one()
    if uri == front.uri:
        return
    if connection.execute(_QUERIES.text("has_users")).scalar_one():
        if front.take_key(bytes(connection.execute(_QUERIES.text("identity_key")).scalar_one())):
            return
        raise UsageError(
            "has users with keys of another installation: the same user would have two keys; only "
            "the first cell of a front may have users before it joins, so let a new database join; "
            "where the cells that have joined are still without users, let them leave, this one "
            "join first, and then them again"
        )
    with _refusals():
        connection.execute(_QUERIES.text("become_owner"))
        connection.execute(_QUERIES.text("set_identity_key"), {"key": front.key})


def _own_database_id(connection: Connection, known: Mapping[UUID, str | None]) -> UUID:
    """The id of the database; another one if it is an empty copy of a known database."""
    database_id: UUID = connection.execute(_QUERIES.text("database_id")).scalar_one()
    if database_id not in known:
        return database_id
    if connection.execute(_QUERIES.text("has_users")).scalar_one():
        if known[database_id] is None:
            return database_id
        raise UsageError(f"is the database of cell '{known[database_id]}', or a copy of it")
    with _refusals():
        connection.execute(_QUERIES.text("become_owner"))
        new_id: UUID = connection.execute(_QUERIES.text("set_database_id")).scalar_one()
    return new_id


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except ProgrammingError as error:
        if isinstance(error.orig, InsufficientPrivilege):
            raise NotAllowed(
                "its login may not set the identity key: join once with the login that runs "
                "`turn-accounting db upgrade` there, and then again with this one"
            ) from error
        raise
