"""Schema ``reporting`` is a contract: its views, columns in order, types and contents."""

from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import pytest

from accounting.domain.counters import COUNTERS
from tests.support.books import Books, channel, status_payload, traffic_payload
from tests.support.sample_books import BEGIN

EIGHT: Final = " ".join(f"{name}:bigint" for name in COUNTERS)
TOTALS: Final = (
    f"{EIGHT} sessions_started:bigint sessions_ended:bigint session_seconds:numeric"
    " estimated_bytes:bigint"
)
BUCKET: Final = "starts_at:time ends_at:time time_zone:text"
NAMES: Final = "realm:text username:text user_id:text user_key:uuid allocation_id:text"
REPORT: Final = (
    "source:text database:integer epoch:integer position:bigint received_at:time"
    f" time_estimated:boolean {NAMES}"
)
# In order; "time" is timestamptz.
VIEWS: Final = {
    "sessions": f"session_id:uuid source:text database:integer {NAMES} started_at:time"
    " start_known:boolean last_seen_at:time ended_at:time end_cause:text transport:text"
    f" client_address:text server_address:text {EIGHT} total_reported:boolean estimated:boolean"
    " disputed:boolean",
    **{
        f"user_usage_{length}": f"realm:text user_id:text user_key:uuid {BUCKET} {TOTALS}"
        for length in ("hourly", "daily", "monthly")
    },
    **{
        f"realm_usage_{length}": f"realm:text {BUCKET} {TOTALS} peak_sessions:bigint"
        for length in ("hourly", "daily", "monthly")
    },
    **{
        f"{dimension}_usage_{length}": f"realm:text {column}:text {BUCKET} {TOTALS}"
        " peak_sessions:bigint"
        for dimension, column in (("server", "server_address"), ("transport", "transport"))
        for length in ("hourly", "daily")
    },
    "rates": "realm:text server_address:text until_at:time live_sessions:bigint"
    " sessions_started_1m:bigint sessions_started_5m:bigint received_bytes_per_second_1m:bigint"
    " sent_bytes_per_second_1m:bigint received_bytes_per_second_5m:bigint"
    " sent_bytes_per_second_5m:bigint",
    "unattributed_usage": "source:text realm:text username:text starts_at:time ends_at:time "
    + EIGHT.replace("bigint", "numeric"),
    "allocation_events": f"{REPORT} event:text lifetime:integer transport:text"
    " client_address:text server_address:text",
    "traffic_reports": f"{REPORT} report:text side:text received_packets:bigint"
    " received_bytes:bigint sent_packets:bigint sent_bytes:bigint",
    "capture_gaps": "gap_id:bigint source:text from_at:time to_at:time cause:text detail:text",
    "rejected_messages": "source:text position:bigint received_at:time channel:bytea"
    " payload:bytea reason:text",
    "rejected_message_counts": "source:text starts_at:time ends_at:time reason:text"
    " messages:bigint stored:bigint",
    "sources": "source:text mode:text epoch:integer position:bigint captured_until:time"
    " loaded_until:time settled_until:time retired_at:time",
    "periods": "realm:text period:date starts_at:time ends_at:time time_zone:text state:text"
    " closed_at:time waits_for:text",
    "statements": f"realm:text period:date user_id:text user_key:uuid {TOTALS} cutoff:text"
    " closed_at:time digest:text",
    "statement_previews": f"realm:text period:date user_id:text user_key:uuid {TOTALS} cutoff:text"
    " closed_at:time digest:text",
    "adjustments": "adjustment_id:uuid realm:text period:date posted_in:date user_id:text"
    f" user_key:uuid {EIGHT} session_seconds:numeric reason:text author:text posted_at:time",
    "limits": "limit_id:integer realm:text whom:text user_id:text user_key:uuid measure:text"
    " direction:text per:text amount:bigint thresholds:integer[] set_at:time",
    "limit_states": "limit_id:integer realm:text whom:text user_id:text user_key:uuid measure:text"
    f" direction:text per:text amount:bigint threshold:integer {BUCKET} usage:numeric"
    " reached_at:time cleared_at:time times_reached:integer",
    "limit_usage": "limit_id:integer realm:text whom:text user_id:text user_key:uuid measure:text"
    f" direction:text per:text amount:bigint {BUCKET} usage:numeric percent:numeric",
    "feed": "seq:bigint event_id:uuid type:text realm:text payload:jsonb created_at:time",
    # FreeRADIUS: raddb/mods-config/sql/main/postgresql/schema.sql, in its order; then the ports.
    "radacct": "radacctid:bigint acctsessionid:text acctuniqueid:text username:text groupname:text"
    " realm:text nasipaddress:inet nasportid:text nasporttype:text acctstarttime:time"
    " acctupdatetime:time acctstoptime:time acctinterval:bigint acctsessiontime:bigint"
    " acctauthentic:text connectinfo_start:text connectinfo_stop:text acctinputoctets:bigint"
    " acctoutputoctets:bigint calledstationid:text callingstationid:text"
    " acctterminatecause:text servicetype:text framedprotocol:text framedipaddress:inet"
    " framedipv6address:inet framedipv6prefix:inet framedinterfaceid:text"
    " delegatedipv6prefix:inet class:text serverport:integer clientport:integer",
}
NULLABLE: Final = {
    "sessions": {"ended_at", "end_cause", "transport", "client_address", "server_address"},
    "allocation_events": {"lifetime", "transport", "client_address", "server_address"},
    "capture_gaps": {"to_at"},
    "sources": {"captured_until", "loaded_until", "settled_until", "retired_at"},
    "periods": {"closed_at", "waits_for"},
    "limits": {"user_id", "user_key"},
    "limit_states": {"user_id", "user_key", "cleared_at"},
    "limit_usage": {"user_id", "user_key"},
    "statement_previews": {"cutoff", "closed_at", "digest"},
    "radacct": {
        "nasporttype", "acctstoptime", "acctinterval", "connectinfo_stop", "acctterminatecause",
        "framedipaddress", "framedipv6address", "framedipv6prefix", "framedinterfaceid",
        "delegatedipv6prefix", "serverport", "clientport",
    },
}  # fmt: skip


def reporting_columns(books: Books) -> dict[str, list[dict[str, Any]]]:
    """The columns of every relation in reporting, by relation."""
    columns: dict[str, list[dict[str, Any]]] = {}
    for row in books.query(
        """
        SELECT c.relname, c.relkind::text AS kind, a.attname AS name,
            replace(format_type(a.atttypid, NULL), 'timestamp with time zone', 'time') AS type,
            col_description(c.oid, a.attnum) AS comment, obj_description(c.oid) AS view_comment,
            pg_relation_is_updatable(c.oid, true) AS writable
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.relnamespace = 'reporting'::regnamespace AND c.relkind <> 'i'
        ORDER BY c.relname, a.attnum
        """
    ):
        columns.setdefault(row["relname"], []).append(row)
    return columns


def test_reporting_holds_the_views_of_the_contract_and_nothing_else(sample_books: Books) -> None:
    columns = reporting_columns(sample_books)
    assert {
        view: " ".join(f"{row['name']}:{row['type']}" for row in rows)
        for view, rows in columns.items()
    } == VIEWS
    assert {row["kind"] for rows in columns.values() for row in rows} == {"v"}


def test_every_view_and_every_column_has_a_comment(sample_books: Books) -> None:
    uncommented = [
        f"{view}.{row['name']}"
        for view, rows in reporting_columns(sample_books).items()
        for row in rows
        if not row["comment"] or not row["view_comment"]
    ]
    assert uncommented == []


def test_no_view_can_be_written_through(sample_books: Books) -> None:
    assert {
        view for view, rows in reporting_columns(sample_books).items() if rows[0]["writable"]
    } == set()


@pytest.mark.parametrize("view", VIEWS)
def test_only_what_may_be_absent_is_ever_null(sample_books: Books, view: str) -> None:
    rows = sample_books.rows(view)
    assert rows, f"the sample books have no rows in {view}"
    empty = {name for row in rows for name, value in row.items() if value is None}
    assert empty <= NULLABLE.get(view, set())


def test_a_session_has_every_column(sample_books: Books) -> None:
    session = sample_books.rows("sessions", order="source, session_id")[1]
    [alice] = {
        row["user_key"] for row in sample_books.rows("sessions") if row["user_id"] == "alice"
    }
    assert session == {
        "session_id": UUID("37a90000-0001-8000-8000-000000000005"),
        "source": "default",
        "database": 0,
        "realm": "example.org",
        "username": "alice",
        "user_id": "alice",
        "user_key": alice,
        "allocation_id": "000000000000000002",
        "started_at": datetime(2026, 11, 1, 22, 0, tzinfo=UTC),
        "start_known": True,
        "last_seen_at": datetime(2026, 11, 1, 22, 1, 40, tzinfo=UTC),
        "ended_at": datetime(2026, 11, 1, 22, 1, 40, tzinfo=UTC),
        "end_cause": "deleted",
        "transport": "UDP",
        "client_address": "198.51.100.7:50000",
        "server_address": "192.0.2.1:3478",
        "received_packets": 2_010,
        "received_bytes": 201_000,
        "sent_packets": 50,
        "sent_bytes": 5_000,
        "peer_received_packets": 0,
        "peer_received_bytes": 0,
        "peer_sent_packets": 0,
        "peer_sent_bytes": 0,
        "total_reported": True,
        "estimated": False,
        "disputed": False,
    }


def test_views_of_reports_show_what_was_received(sample_books: Books) -> None:
    events = sample_books.rows(
        "allocation_events", "event", "lifetime", "received_at", "time_estimated",
        order="source, epoch, position",
    )  # fmt: skip
    assert events[0] == {
        "event": "new",
        "lifetime": 600,
        "received_at": BEGIN,
        "time_estimated": False,
    }
    assert {row["event"] for row in events} == {"new", "refreshed", "deleted"}
    reports = sample_books.rows(
        "traffic_reports", "report", "side", *COUNTERS[:4], order="source, epoch, position"
    )
    assert list(reports[1].values()) == ["total", "client", 10, 1_000, 4, 400]
    messages = sample_books.query(
        "SELECT (SELECT count(*) FROM accounting.reports) AS stored, (SELECT count(*) FROM"
        " reporting.allocation_events) + (SELECT count(*) FROM reporting.traffic_reports) AS shown"
    )
    assert messages[0]["stored"] == messages[0]["shown"]


def test_a_rejected_message_is_stored_unchanged(sample_books: Books) -> None:
    assert sample_books.rows("rejected_messages", "source", "channel", "payload", "reason") == [
        {
            "source": "default",
            "channel": channel("status"),
            "payload": b"no status at all",
            "reason": "not an allocation status",
        }
    ]


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        (b"", ""),
        ("grüße".encode(), "grüße"),
        (b"\xff\xfe", r"\xff\xfe"),
        (b"nul\0nul", r"nul\x00nul"),
        (rb"\x41", r"\\x41"),
        (rb"\x4", r"\x4"),
        (rb"back\slash", r"back\slash"),
        (b"tab\tnewline\n", "tab\tnewline\n"),
        (b"a/allocation/000000000000000009/status", "a/allocation/000000000000000009/status"),
    ],
)
def test_names_are_text_with_other_bytes_escaped(books: Books, name: bytes, escaped: str) -> None:
    at = b"/allocation/000000000000000001/"
    books.receive(
        0, b"turn/realm/" + name + b"/user/" + name + at + b"status", status_payload("new")
    )
    books.receive(
        1,
        b"turn/realm/" + name + b"/user/stranger" + name + at + b"traffic",
        traffic_payload(1, 2, 3, 4),
    )
    books.advance_clock(5_000)
    books.run_jobs()
    [session] = books.rows("sessions", "realm", "username", "user_id")
    assert session == {"realm": escaped, "username": escaped, "user_id": escaped}
    [usage] = books.rows("user_usage_hourly", "realm", "user_id")
    assert usage == {"realm": escaped, "user_id": escaped}
    [unattributed] = books.rows("unattributed_usage", "realm", "username")
    assert unattributed["realm"] == escaped


def test_absent_names_are_empty_and_never_null(books: Books) -> None:
    """A channel without a realm, and a server without authentication (an empty user)."""
    books.receive(
        0, b"turn/user//allocation/000000000000000001/status", status_payload("new", local=None)
    )
    books.advance_clock(5_000)
    books.run_jobs()
    [session] = books.rows("sessions", "realm", "username", "user_id", "transport")
    assert session == {"realm": "", "username": "", "user_id": "", "transport": None}


def test_counters_are_exact_at_their_limit(books: Books) -> None:
    most = 2**53 - 1
    books.receive(0, channel("status"), status_payload("new"))
    books.receive(1, channel("traffic"), traffic_payload(1, most, 0, 0))
    for number in (2, 3):
        books.receive(
            number,
            channel("traffic", user="stranger", allocation=number),
            traffic_payload(1, most, 0, 0),
        )
    books.advance_clock(5_000)
    books.run_jobs()
    assert books.rows("sessions", "received_bytes") == [{"received_bytes": most}]
    assert books.rows("user_usage_monthly", "received_bytes") == [{"received_bytes": most}]
    assert books.rows("unattributed_usage", "received_bytes") == [{"received_bytes": 2 * most}]
