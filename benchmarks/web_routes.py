"""All pages and all routes of the API, with the filters that people and programs use."""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import psycopg
from psycopg.rows import dict_row

PAGES: Final[Mapping[str, str]] = {
    "/": "/",
    "/realm, days": "/realm?realm={realm}",
    "/realm, hours": "/realm?realm={realm}&per=hour",
    "/realm, months": "/realm?realm={realm}&per=month",
    "/user, days": "/user/{user_key}",
    "/user, hours": "/user/{user_key}?per=hour",
    "/sessions": "/sessions",
    "/sessions, deep": "/sessions?until=2026-11-05",
    "/sessions, live": "/sessions?live=true",
    "/sessions, realm": "/sessions?realm={realm}",
    "/sessions, realm and day": "/sessions?realm={realm}&since=2026-11-10&until=2026-11-11",
    "/sessions, user": "/sessions?user={user_id}",
    "/session": "/session/{session_id}",
    "/session, an old one": "/session/{old_session_id}",
    "/periods": "/periods",
    "/periods, realm": "/periods?realm={realm}",
    "/statement": "/statement?realm={realm}&period={period}",
    "/statement, open": "/statement?realm={realm}&period={open_period}",
    "/limits": "/limits",
    "/limits, realm": "/limits?realm={realm}",
    "/limits, realm, deep": "/limits?realm={realm}",
    "/unattributed": "/unattributed?realm={realm}",
    "/unattributed, days": "/unattributed?realm={realm}&per=day",
    "/gaps": "/gaps",
}
API: Final[Mapping[str, str]] = {
    "realms": "/api/v1/realms",
    "usage": "/api/v1/usage",
    "usage, realms by hour": "/api/v1/usage?by=realm&per=hour&since=2d",
    "usage, realms by day": "/api/v1/usage?by=realm&per=day&since=2026-11",
    "usage, servers by hour": "/api/v1/usage?by=server&per=hour&since=2d&realm={realm}",
    "usage, servers by day": "/api/v1/usage?by=server&per=day&since=2026-11",
    "usage, servers by month": "/api/v1/usage?by=server&per=month",
    "usage, transports by day": "/api/v1/usage?by=transport&per=day&since=2026-11",
    "rates": "/api/v1/rates",
    "usage, top of a month": "/api/v1/usage?per=month&since=2026-11&top=20&realm={realm}",
    "usage, top of a day": "/api/v1/usage?per=day&since=today&top=20&realm={realm}",
    "usage, days of a realm, deep": "/api/v1/usage?per=day&since=2026-11&realm={realm}",
    "usage, days of a user": "/api/v1/usage?per=day&since=30d&user={user_id}&realm={realm}",
    "usage, hours of a key": "/api/v1/usage?per=hour&since=7d&user_key={user_key}",
    "sessions": "/api/v1/sessions",
    "sessions, deep": "/api/v1/sessions?until=2026-11-05",
    "sessions, live": "/api/v1/sessions?live=true",
    "sessions, live, deep": "/api/v1/sessions?live=true&realm={realm}",
    "sessions, realm, deep": "/api/v1/sessions?realm={realm}&until=2026-11-05",
    "sessions, realm and day": "/api/v1/sessions?realm={realm}&since=2026-11-10&until=2026-11-11",
    "sessions, user": "/api/v1/sessions?user={user_id}",
    "sessions, username": "/api/v1/sessions?user=1800000000:{user_id}",
    "sessions, key": "/api/v1/sessions?user_key={user_key}",
    "session": "/api/v1/sessions/{session_id}",
    "reports of a session": "/api/v1/sessions/{session_id}/reports",
    "periods": "/api/v1/periods",
    "statements, deep": "/api/v1/statements?realm={realm}&period={period}",
    "statements, user": "/api/v1/statements?realm={realm}&period={period}&user={user_id}",
    "statements, preview": "/api/v1/statements?realm={realm}&period={open_period}&preview=true",
    "adjustments, deep": "/api/v1/adjustments?realm={realm}&period={period}",
    "limits": "/api/v1/limits",
    "limits, realm, deep": "/api/v1/limits?realm={realm}",
    "limit usage": "/api/v1/limit-usage?limit_id={limit_id}",
    "limit states": "/api/v1/limit-states",
    "limit states, deep": "/api/v1/limit-states?until=2026-11-20",
    "limit states, realm, deep": "/api/v1/limit-states?realm={realm}",
    "limit states, a day": "/api/v1/limit-states?realm={realm}&since=2026-11-10&until=2026-11-11",
    "limit states, user": "/api/v1/limit-states?user={user_id}",
    "limit states, key": "/api/v1/limit-states?user_key={user_key}",
    "gaps": "/api/v1/gaps",
    "sources": "/api/v1/sources",
    "unattributed": "/api/v1/unattributed",
    "unattributed, deep": "/api/v1/unattributed?realm={realm}&since=7d",
    "notices": "/api/v1/notices",
    "feed": "/api/v1/feed",
    "feed, deep": "/api/v1/feed?after={feed_middle}",
    "live": "/api/v1/live",
    "openapi": "/api/openapi.json",
}
DEEP: Final = "deep"
"""A route with this word is asked for where the list goes on after some pages."""
NAMES: Final = """
SELECT r.realm, u.user_key::text, u.user_id, min(p.period)::text AS period,
    max(p.period)::text AS open_period,
    (SELECT min(limit_id)::text FROM accounting.limits l
        WHERE l.realm_id = r.realm_id AND l.whom = 'every_user' AND l.per = 'month') AS limit_id,
    (SELECT max(seq) / 2 FROM accounting.feed)::text AS feed_middle,
    (SELECT session_id::text FROM accounting.sessions WHERE user_key = u.user_key AND confirmed
        AND ended_at IS NOT NULL ORDER BY started_at DESC LIMIT 1) AS session_id,
    (SELECT session_id::text FROM accounting.sessions WHERE user_key = u.user_key AND confirmed
        ORDER BY started_at LIMIT 1) AS old_session_id
FROM accounting.realms r
JOIN accounting.periods p USING (realm_id)
CROSS JOIN LATERAL (
    SELECT * FROM accounting.users u WHERE u.realm_id = r.realm_id
    ORDER BY u.user_id OFFSET 10 LIMIT 1
) u
WHERE r.realm = %s
GROUP BY r.realm_id, r.realm, u.user_key, u.user_id
"""


def route_names(url: str, realm: str) -> Mapping[str, Any]:
    """A user, sessions and periods of a realm, for :func:`route_paths`; as the superuser."""
    with psycopg.connect(url) as connection:
        names = connection.cursor(row_factory=dict_row).execute(NAMES, [realm]).fetchone()
    assert names is not None
    return names


def route_paths(names: Mapping[str, Any]) -> dict[str, str]:
    """The first page of every route, by name."""
    quoted = {name: quote(str(value)) for name, value in names.items()}
    return {name: template.format(**quoted) for name, template in {**PAGES, **API}.items()}
