"""Encoding: a message's row depends on the message alone, not on the batch or the cache."""

from collections.abc import Iterable, Iterator
from typing import Final
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from accounting.audit.verify import verify
from accounting.capture.spool.records import Message
from accounting.capture.spool.spool import Spool
from accounting.db.engine import Engine, open_engine
from accounting.domain.calendar import from_micros
from accounting.domain.coturn_messages import CoturnMessage, MessageRejected, parse
from accounting.domain.identity import UsernameRule, billed_user, pseudonym
from accounting.domain.rate_limit import RateLimit
from accounting.domain.realm_rules import RealmRule
from accounting.identities import realm_queries
from accounting.identities.identity_resolver import IdentityResolver
from accounting.ingest.loader import Loader
from accounting.ingest.rejected_messages import RejectedMessage
from accounting.ingest.row_encoder import NewRealm, RowEncoder
from accounting.sessions.open_sessions import OpenSessions
from tests.support.books import (
    START,
    WRITER,
    Books,
    channel,
    cloned_database,
    status_payload,
    traffic_payload,
)
from tests.support.message_lines import MESSAGE_LINES, unescaped
from tests.support.servers import PostgresServer

RULE_CHANGE: Final = 1_000_000
"""From this time (microseconds) the user ids of realm ``b`` are its usernames."""
IDENTITY_KEY_QUERY: Final = "SELECT identity_key FROM accounting.installation"


@pytest.fixture(scope="module")
def connection(postgres_server: PostgresServer) -> Iterator[Connection]:
    """A database with the realms '', 'a' and 'b'."""
    with cloned_database(postgres_server) as name:
        engine: Engine = open_engine(postgres_server.url(WRITER, name))
        with engine.begin() as connection:
            for realm in (b"", b"a", b"b"):
                realm_queries.add_realm(connection, realm, RealmRule())
            plain = RealmRule(holds_from=RULE_CHANGE, username_rule=UsernameRule.PLAIN)
            realm_queries.insert_rule(connection, realm_queries.realm_ids(connection)[b"b"], plain)
            yield connection
        engine.dispose()


def encode(
    connection: Connection, spool: Spool, batches: Iterable[int], reached: tuple[int, int] = (1, 0)
) -> tuple[bytes, list[RejectedMessage]]:
    """Encode a spool with one resolver, in transactions of these numbers of messages."""
    identities = IdentityResolver(RealmRule())
    memory = OpenSessions(10)
    memory.begin(connection, 1, realm_queries.all_rules(connection), [])
    packed, rejected = b"", []
    for limit in batches:
        identities.begin(connection)
        encoder = RowEncoder(
            spool=spool,
            source_id=1,
            epoch_numbers={1: 3},
            identities=identities,
            memory=memory,
            rate_limit=RateLimit(),
            partitions={0},
            reached=reached,
            end=(1, spool.state().captured_position),
            limit=limit,
            received_at=0,
            latest=1 << 62,
        )
        while encoder.has_more():
            packed += b"".join(encoder.encoded_chunks())
            if encoder.needs is not None:
                assert isinstance(encoder.needs, NewRealm)
                identities.add_realm(connection, encoder.needs.name)
                memory.add_rules(identities.rules)
        memory.end(memory.take_changed()[0])
        identities.take_names()
        rejected += encoder.rejected
        reached = encoder.reached
    return packed, rejected


OWNERS: Final = st.tuples(
    st.sampled_from([b"turn", b"turn/realm/a", b"turn/realm/b", b"turn/realm/new", b"tern"]),
    st.sampled_from([b"", b"7", b"7:u", b"u:7", b"u", b"u/allocation/000000000000000001/status"]),
).map(lambda names: b"%b/user/%b/allocation/" % names)
SUFFIXES: Final = st.sampled_from(
    [b"status", b"traffic", b"traffic/peer", b"total_traffic", b"total_traffic/peer", b"x"]
)
CHANNELS: Final = st.builds(b"%b%018d/%b".__mod__, st.tuples(OWNERS, st.integers(0, 2), SUFFIXES))
PAYLOADS: Final = st.sampled_from(
    [
        b"new lifetime=600, type=UDP, local=192.0.2.1:1, remote=198.51.100.7:5, ssl=NONE, cipher=",
        b"refreshed lifetime=0",
        b"deleted",
        b"rcvp=1, rcvb=2, sentp=3, sentb=4",
        b"rcvp=0, rcvb=9007199254740992, sentp=0, sentb=0",
    ]
)
MESSAGES: Final = st.lists(
    st.tuples(
        st.sampled_from([RULE_CHANGE - 1, RULE_CHANGE, RULE_CHANGE + 1]),
        st.sampled_from([0, 5]),
        CHANNELS,
        PAYLOADS,
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(MESSAGES, st.integers(0, 12), st.integers(0, 12))
def test_a_cached_identity_yields_the_same_rows_as_an_uncached_one(
    connection: Connection,
    tmp_path_factory: pytest.TempPathFactory,
    messages: list[Message],
    estimated: int,
    cut: int,
) -> None:
    with Spool.open(tmp_path_factory.mktemp("spool") / "spool", "s") as spool:
        spool.append(messages, estimated_count=estimated)
        packed, rejected = encode(connection, spool, [cut, len(messages)])
        single = [
            encode(connection, spool, [1], (1, position)) for position in range(len(messages))
        ]
    assert packed == b"".join(row for row, _ in single)
    assert rejected == [message for _, messages in single for message in messages]


def expected(event: CoturnMessage, key: bytes) -> tuple[object, ...]:
    user = billed_user(event.username, UsernameRule.AUTO, b":")
    return (
        event.realm,
        UUID(bytes=pseudonym(key, event.realm, b"username\0" + event.username)),
        UUID(bytes=pseudonym(key, event.realm, b"user\0" + user)),
        *event[2:],
    )


def test_every_line_becomes_the_parsed_row_or_a_rejected_message(books: Books) -> None:
    """In a first batch, when no realm is known, and in a second, when all are."""
    messages = [(unescaped(name), unescaped(payload)) for name, payload, _ in MESSAGE_LINES] * 2
    books.receive_all(
        [(books.micros_at(number), 2, *message) for number, message in enumerate(messages)]
    )
    loaded = books.load(limit=len(MESSAGE_LINES))
    assert loaded == len(messages)
    with psycopg.connect(books.url()) as connection:
        stored = connection.execute(
            "SELECT position, received_at, time_estimated, database, realm_bytes, username_key,"
            " user_key, allocation_id, kind, side, lifetime, transport, server_address,"
            " client_address, received_packets, received_bytes, sent_packets, sent_bytes"
            " FROM accounting.reports JOIN accounting.realms USING (realm_id) ORDER BY 1"
        ).fetchall()
        stored_rejected = connection.execute(
            "SELECT position, reason, channel, payload FROM accounting.rejected_messages ORDER BY 1"
        ).fetchall()
        key = bytes(connection.execute(IDENTITY_KEY_QUERY).fetchall()[0][0])
    parsed, rejected = [], []
    for position, (name, payload) in enumerate(messages, 1):
        try:
            event = parse(name, payload)
        except MessageRejected as error:
            rejected.append((position, str(error), name, payload))
            continue
        at = from_micros(books.micros_at(position - 1))
        parsed.append((position, at, False, 2, *expected(event, key)))
    assert stored == parsed
    assert stored_rejected == rejected


def test_names_in_rejected_messages_are_not_stored(books: Books) -> None:
    books.receive(1, channel("traffic", realm="r", user="alice"), b"rcvp=1")
    books.receive(2, channel("status", realm="r", user="bob"), status_payload("new"))
    books.receive(3, channel("status", realm="s", user="carol"), b"gone")
    assert books.load() == 3
    assert books.query("SELECT username FROM accounting.usernames") == [{"username": "bob"}]
    assert books.query("SELECT realm FROM accounting.realms") == [{"realm": "r"}]


def test_reports_of_new_realms_keep_their_positions_and_times(books: Books) -> None:
    for number in range(6):
        realm = f"r{number % 3}"
        books.receive(number, channel("traffic", realm=realm), traffic_payload(number, 0, 0, 0))
        if number == 2:
            assert books.load() == 3
    books.receive(6, channel("traffic", realm="r9"), traffic_payload(6, 0, 0, 0))
    books.receive(7, channel("traffic", realm="r1"), traffic_payload(7, 0, 0, 0))
    assert books.load() == 5
    reports = books.query(
        "SELECT realm, extract(epoch FROM received_at - %s)::int AS at, received_packets"
        " FROM accounting.reports JOIN accounting.realms USING (realm_id) ORDER BY position",
        [START],
    )
    order = ["r0", "r1", "r2", "r0", "r1", "r2", "r9", "r1"]
    assert [(row["realm"], row["at"], int(row["received_packets"])) for row in reports] == [
        (realm, number, number) for number, realm in enumerate(order)
    ]


def test_a_full_cache_is_cleared_and_changes_no_row(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accounting.identities.identity_resolver.CACHE_BYTES", 1_000)
    for number in range(40):
        name = channel("traffic", user=f"u{number % 7}", allocation=number)
        books.receive(number, name, traffic_payload(1, 1, 1, 1))
    assert books.load(limit=5) == 40
    counts = books.query(
        "SELECT username, count(*) FROM accounting.reports JOIN accounting.usernames"
        " USING (user_key, username_key) GROUP BY 1 ORDER BY 1"
    )
    assert [(row["username"], row["count"]) for row in counts] == [
        (f"u{number}", 6 if number < 5 else 5) for number in range(7)
    ]


def test_both_forms_of_the_empty_realm_are_of_one_allocation(books: Books) -> None:
    forms = [b"turn/user/u/allocation/", b"turn/realm//user/u/allocation/"]
    channels = [b"%b%018d/" % (form, 1) for form in forms]
    loader = Loader(books.engine, books.spool(), books.rule)
    for number in range(2):
        payloads = [status_payload("new"), status_payload("refreshed"), b"deleted"]
        for step, payload in enumerate(payloads):
            name = channels[(number + step) % 2] + b"status"
            books.receive(20 * number + step, name, payload)
        for side, suffix in enumerate([b"total_traffic", b"total_traffic/peer"]):
            name = channels[(number + side) % 2] + suffix
            books.receive(20 * number + 9, name, traffic_payload(1, 1, 1, 1))
        assert loader.load() == 5
    sessions = books.rows("sessions", "received_packets", "end_cause")
    assert sessions == [{"received_packets": 1, "end_cause": "deleted"}] * 2
    assert list(verify(books.engine)) == []


def test_many_rejected_messages_end_the_transaction_early(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accounting.ingest.row_encoder.MAX_REJECTED", 2)
    monkeypatch.setattr("accounting.ingest.row_encoder.CHUNK_MESSAGES", 3)
    books.receive_all(
        [(books.micros_at(number), 0, channel("traffic"), b"") for number in range(7)]
    )
    books.receive(7, channel("traffic"), traffic_payload(1, 1, 1, 1))
    loader = Loader(books.engine, books.spool(), books.rule)
    assert [loader.load() for _ in range(4)] == [3, 3, 2, 0]
    assert len(books.rows("rejected_messages")) == 7
    assert len(books.rows("traffic_reports")) == 1


def test_a_loader_is_caught_up_when_nothing_is_left_for_another_transaction(books: Books) -> None:
    """Until then it loads without a pause."""
    books.receive_all(
        [(books.micros_at(number), 0, channel("traffic"), b"") for number in range(7)]
    )
    loader = Loader(books.engine, books.spool(), books.rule)
    assert [(loader.load(3), loader.caught_up) for _ in range(4)] == [
        (3, False),
        (3, False),
        (1, True),
        (0, True),
    ]


def test_names_of_a_failed_transaction_are_stored_by_the_next(books: Books) -> None:
    books.receive(1, channel("status"), status_payload("new"))
    loader = Loader(books.engine, books.spool(), books.rule)
    with psycopg.connect(books.url(), autocommit=True) as other:
        # The last statement of the transaction fails, once.
        other.execute("ALTER TABLE accounting.message_counts RENAME TO renamed")
        with pytest.raises(Exception, match="message_counts"):
            loader.load()
        other.execute("ALTER TABLE accounting.renamed RENAME TO message_counts")
    assert loader.load() == 1
    assert len(books.query("SELECT FROM accounting.usernames")) == 1
