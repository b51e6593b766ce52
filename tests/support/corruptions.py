"""Books with sessions of every kind, and statements that corrupt them for the audit to find."""

from typing import Final

import psycopg

from accounting.audit.differences import Difference
from accounting.identities.realm_rules import set_rule
from tests.support.books import Books
from tests.support.coturn_messages import FakeAllocation, run_jobs_at

CORRUPTIONS: Final = {
    "a changed byte count of a session": (
        (
            "UPDATE accounting.sessions SET received_bytes = received_bytes + 1"
            " WHERE allocation_id = 1"
        ),
        ("sessions", "differs", "received_bytes"),
    ),
    "a session that nobody reported": (
        (
            "INSERT INTO accounting.sessions SELECT (e).* FROM ("
            " SELECT json_populate_record("
            "  e, json_build_object('session_id', gen_random_uuid())) AS e"
            " FROM accounting.sessions e LIMIT 1) made"
        ),
        ("sessions", "unfounded", ""),
    ),
    "a lost session": (
        "DELETE FROM accounting.sessions WHERE allocation_id = 1",
        ("sessions", "missing", ""),
    ),
    "an end moved by a second": (
        (
            "UPDATE accounting.sessions SET ended_at = ended_at + interval '1 second'"
            " WHERE allocation_id = 1"
        ),
        ("sessions", "differs", "ended_at"),
    ),
    "an unauthenticated session that is billed": (
        "UPDATE accounting.sessions SET confirmed = true WHERE NOT confirmed",
        ("sessions", "differs", "confirmed"),
    ),
    "a session under another user": (
        "UPDATE accounting.sessions SET user_key = gen_random_uuid() WHERE allocation_id = 1",
        ("sessions", "unfounded", ""),
    ),
    "a changed report": (
        (
            "UPDATE accounting.reports SET sent_bytes = sent_bytes + 7 WHERE kind = 4 AND side = 0"
            " AND allocation_id = 9"
        ),
        ("session_usage", "differs", "sent_bytes"),
    ),
    "a lost report": (
        "DELETE FROM accounting.reports WHERE kind = 4 AND allocation_id = 1",
        ("reports", "missing", "count of source default"),
    ),
    "lost reports of one kind": (
        "DELETE FROM accounting.reports WHERE kind = 2",
        ("sessions", "differs", "last_seen_at"),
    ),
    "a doubled report": (
        (
            "INSERT INTO accounting.reports SELECT (r).* FROM ("
            " SELECT json_populate_record(r, json_build_object('position', r.position + 1)) AS r"
            " FROM accounting.reports r WHERE kind = 4 AND allocation_id = 9) made"
        ),
        ("sessions", "differs", "sent_bytes"),
    ),
    "a report that is stored twice": (
        "INSERT INTO accounting.reports SELECT * FROM accounting.reports WHERE kind = 2",
        ("reports", "unfounded", "repeated positions of source default"),
    ),
    "a report with the position of another": (
        (
            "UPDATE accounting.reports SET position ="
            " (SELECT max(position) FROM accounting.reports) WHERE kind = 4 AND allocation_id = 1"
        ),
        ("reports", "unfounded", "repeated positions of source default"),
    ),
    "a report that came too early": (
        (
            "UPDATE accounting.reports SET received_at = received_at - interval '10 minutes'"
            " WHERE kind = 4 AND allocation_id = 9"
        ),
        ("reports", "differs", "receipt out of order of source default"),
    ),
    "a doubled row of an hour": (
        (
            "INSERT INTO accounting.session_usage SELECT (h).* FROM ("
            " SELECT json_populate_record(h, json_build_object("
            "  'starts_at', h.starts_at - interval '1 day')) AS h"
            " FROM accounting.session_usage h LIMIT 1) made"
        ),
        ("session_usage", "unfounded", ""),
    ),
    "a shifted hour": (
        "UPDATE accounting.session_usage SET starts_at = starts_at - interval '7 hours'",
        ("session_usage", "missing", ""),
    ),
    "a user's hour that was never rolled up": (
        "DELETE FROM accounting.user_usage_hourly",
        ("user_usage_hourly", "missing", ""),
    ),
    "a second more of a user's day": (
        "UPDATE accounting.user_usage_daily SET session_microseconds = session_microseconds + 1",
        ("user_usage_daily", "differs", "session_microseconds"),
    ),
    "a month that counted twice": (
        "UPDATE accounting.user_usage_monthly SET sent_bytes = 2 * sent_bytes WHERE sent_bytes > 0",
        ("user_usage_monthly", "differs", "sent_bytes"),
    ),
    "wrong estimated bytes": (
        "UPDATE accounting.realm_usage_monthly SET estimated_bytes = estimated_bytes + 1",
        ("realm_usage_monthly", "differs", "estimated_bytes"),
    ),
    "a realm's day of another realm": (
        "UPDATE accounting.realm_usage_daily SET realm_id = realm_id + 100",
        ("realm_usage_daily", "missing", ""),
    ),
    "a peak too low": (
        (
            "UPDATE accounting.realm_usage_hourly SET peak_sessions = peak_sessions - 1"
            " WHERE peak_sessions > 1"
        ),
        ("realm_usage_hourly", "differs", "peak_sessions"),
    ),
    "usage at a wrong server": (
        "UPDATE accounting.server_usage_hourly SET server = '192.0.2.9'",
        ("server_usage_hourly", "missing", ""),
    ),
    "a byte less of a transport": (
        "UPDATE accounting.server_usage_hourly SET sent_bytes = sent_bytes - 1",
        ("server_usage_hourly", "differs", "sent_bytes"),
    ),
    "a peak of a server too high": (
        "UPDATE accounting.dimension_peaks_hourly SET peak_sessions = peak_sessions + 1",
        ("dimension_peaks_hourly", "differs", "peak_sessions"),
    ),
    "a bucket that ends early": (
        "UPDATE accounting.buckets SET ends_at = ends_at - interval '1 hour' WHERE level = 'day'",
        ("buckets", "differs", "day ends_at"),
    ),
    "a bucket of a wrong zone": (
        "UPDATE accounting.buckets SET time_zone = 'UTC' WHERE time_zone = 'Asia/Kolkata'",
        ("buckets", "differs", "hour time_zone"),
    ),
    "a lost bucket": (
        "DELETE FROM accounting.buckets WHERE level = 'month'",
        ("buckets", "missing", "month"),
    ),
    "an hour of a user that the feed lost": (
        "DELETE FROM accounting.feed_outbox WHERE type = 'usage.counted' AND sent_bytes > 0",
        ("usage.counted", "missing", ""),
    ),
    "an hour of a user with another byte in the feed": (
        (
            "UPDATE accounting.feed_outbox SET sent_bytes = sent_bytes + 1"
            " WHERE type = 'usage.counted' AND user_key ="
            " (SELECT user_key FROM accounting.sessions WHERE allocation_id = 9)"
        ),
        ("usage.counted", "differs", "sent_bytes"),
    ),
    "a rule with a wrong zone": (
        "UPDATE accounting.realm_rules SET time_zone = 'UTC' WHERE time_zone = 'Asia/Kolkata'",
        ("session_usage", "missing", ""),
    ),
}


LOST_COUNT: Final = (
    "DELETE FROM accounting.rejected_counts",
    ("rejected_messages", "differs", "count of source default"),
)
BESIDE_USAGE: Final = (
    {
        "an open session too many at a server": (
            "UPDATE accounting.server_load SET live_sessions = live_sessions + 1",
            ("server_load", "differs", "live_sessions of server '192.0.2.1'"),
        ),
        "an open session at a server that has none": (
            (
                "INSERT INTO accounting.server_load SELECT realm_id, '192.0.2.9', 1"
                " FROM accounting.realms"
            ),
            ("server_load", "unfounded", "live_sessions of server '192.0.2.9'"),
        ),
        "a slice with another peak": (
            (
                "UPDATE accounting.realm_peak_slices SET session_peak = session_peak + 9"
                " WHERE dimension = 'transport'"
            ),
            ("realm_peak_slices", "differs", "peak of transport 'UDP'"),
        ),
        "a slice in which a session ends that does not": (
            (
                "UPDATE accounting.realm_peak_slices s SET session_delta = session_delta - 1"
                " WHERE dimension = 'realm' AND slice_at = (SELECT max(slice_at)"
                "  FROM accounting.realm_peak_slices l WHERE l.realm_id = s.realm_id)"
            ),
            ("realm_peak_slices", "differs", "2026-11-02 12:11:40+00 of realm ''"),
        ),
        "a last hour that is not known": (
            "UPDATE accounting.fold_watermarks SET last_hour_ends_at = '-infinity'",
            ("fold_watermarks", "differs", "last_hour_ends_at"),
        ),
        "the name of another user": (
            "UPDATE accounting.users SET user_id = 'mallory' WHERE user_id = 'alice'",
            ("users", "differs", "user_id"),
        ),
        "a user of another realm in radacct": (
            "UPDATE accounting.users SET radacct_suffix = '@elsewhere'",
            ("users", "differs", "radacct_suffix"),
        ),
        "a username of another user": (
            "UPDATE accounting.usernames SET username = 'mallory' WHERE username = 'stranger'",
            ("usernames", "differs", "username"),
        ),
        "an end that the feed lost": (
            "DELETE FROM accounting.feed_outbox WHERE type = 'session.ended'",
            ("session.ended", "missing", ""),
        ),
    },
    {
        "a server that lost its open sessions": (
            "DELETE FROM accounting.server_load",
            ("server_load", "missing", "live_sessions of server '192.0.2.1'"),
        ),
        "a user without a name": (
            "DELETE FROM accounting.users WHERE user_id = 'alice'",
            ("users", "missing", ""),
        ),
        "an end with another byte in the feed": (
            (
                "UPDATE accounting.feed_outbox SET sent_bytes = sent_bytes + 1"
                " WHERE type = 'session.ended'"
            ),
            ("session.ended", "missing", ""),
        ),
    },
)
"""Corruptions of what is kept besides usage and sessions, which can be found together."""


def fill_books(books: Books) -> None:
    """Receive sessions in two realms: exact, estimated, expired, active and unauthenticated."""
    set_rule(
        books.engine,
        "kolkata",
        {"time_zone": "Asia/Kolkata"},
        default=books.rule,
        holds_from=None,
    )
    for allocation, realm in ((1, "example.org"), (2, "example.org"), (3, "kolkata")):
        fake = FakeAllocation(books, allocation=allocation, realm=realm)
        fake.new(allocation)
        fake.interim(30 + allocation, 1, 100, 2, 200)
    for allocation, realm in ((1, "example.org"), (3, "kolkata")):
        FakeAllocation(books, allocation=allocation, realm=realm).close(
            60 + allocation, (2, 150, 3, 300), (0, 0, 0, 0)
        )
    FakeAllocation(books, allocation=2).refreshed(500)
    FakeAllocation(books, user="stranger", allocation=5).interim(600, 1, 10, 1, 10)
    long = FakeAllocation(books, allocation=9)
    long.new(700, 7200)
    long.interim(800, 1, 1, 1, 1)
    books.receive(801, b"turn/realm/nonsense", b"leaves a free position")
    long.refreshed(810, 7200)
    long.refreshed(3700, 7200)
    run_jobs_at(books, 3800)


def corrupt(books: Books, statement: str) -> None:
    with psycopg.connect(books.url()) as connection:
        assert connection.execute(statement.encode()).rowcount > 0


def difference_key(difference: Difference) -> tuple[str, str, str]:
    return difference.what, difference.kind, difference.column
