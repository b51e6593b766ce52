"""What happens now: live sessions, the rates of sessions, users and realms, lag and gaps.

A rate is the traffic that was reported within a span, which ends where the source is loaded, over
its length. Each reading asks for the reports since the last one; the first one for the newest. So
the cost depends on how much is reported, and not on how many sessions live: none of the queries
reads all of them.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from accounting.reporting import session_queries, usage_queries, view_queries
from accounting.reporting.session_queries import ReportPosition
from accounting.reporting.traffic_rates import Key, Rate, TrafficRates
from accounting.reporting.view_query import Arrangement, HoursAgo, Row, ViewQuery

if TYPE_CHECKING:
    from accounting.reporting.reader import DatabaseReader

SHORT_SECONDS: Final = 10
LONG_SECONDS: Final = 120
GAP_HOURS: Final = 24
USAGE_HOURS: Final = 24
MOST_REPORTS: Final = 10_000
"""No more reports are read of a source at once: where more came, the rates are of the newest."""
NOWHERE: Final = ReportPosition(0, 0)
LISTED: Final = 50
"""So many sessions of each kind are read: oldest, newest, and with most traffic in either span."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePart:
    """What part of the state is wanted: everything, a realm, or a user of it."""

    realm: str | None = None
    user_key: UUID | None = None

    @property
    def key(self) -> Key:
        """What the rates of the whole part are of."""
        return self.realm if self.user_key is None else self.user_key


EVERYTHING: Final = LivePart()


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """A realm, user or session with its rates. ``row``: its other columns."""

    row: Mapping[str, Any]
    short: Rate
    long: Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveState:
    """The state at ``now``, by the database's clock.

    ``loaded_until``: up to when all sources in service are loaded; None if one never was. ``live``:
    the number of open sessions. ``sources``: those in service. ``gaps``: of the last day, open ones
    of these sources first, then the newest. ``realms``: with ``realm``, ``live`` and ``hours``, the
    bytes per second of each of the last hours. ``users``: with ``realm``, ``user_id``, ``user_key``
    and ``active``, how many of its live sessions reported in the long span. ``sessions`` has rows
    of the view. ``without_cells``: of a front, which are left out.
    """

    now: datetime
    loaded_until: datetime | None
    live: int
    sources: Sequence[Row]
    gaps: Sequence[Row]
    everything: Activity
    realms: Sequence[Activity]
    users: Sequence[Activity]
    sessions: Sequence[Activity]
    without_cells: Sequence[str] = ()


@dataclass(slots=True)
class _SourceTraffic:
    """What a source reported lately, and how far it was read."""

    read_to: ReportPosition = NOWHERE
    read_until: datetime | None = None
    covered_from: datetime | None = None
    short: TrafficRates = field(default_factory=lambda: TrafficRates(SHORT_SECONDS))
    long: TrafficRates = field(default_factory=lambda: TrafficRates(LONG_SECONDS))


class LiveReader:
    """Reads the state again and again, and remembers the traffic of the last minutes."""

    def __init__(self, reader: "DatabaseReader", *, most_reports: int = MOST_REPORTS) -> None:
        self._base = self._reader = reader
        self._most_reports = most_reports
        self._traffic: dict[str, _SourceTraffic] = {}
        self._users: dict[UUID, Mapping[str, Any]] = {}
        self._session_users: dict[UUID, UUID] = {}

    def read(self, part: LivePart = EVERYTHING) -> LiveState:
        """Read the state, of a part without sources and gaps.

        Any parts can be read in turn: the traffic is read once for all of them. Raises as
        :meth:`DatabaseReader.read_rows`.
        """
        self._reader = self._base.leaving_out()
        [clock] = self._rows(view_queries.database_now())
        now: datetime = clock["now"]
        sources = [row for row in self._rows(view_queries.sources()) if row["retired_at"] is None]
        for name in self._traffic.keys() - {row["source"] for row in sources}:
            del self._traffic[name]
        for row in sources:
            self._read_traffic(row)
        self._forget_idle()
        sessions = self._sessions(part)
        realms = [] if part.user_key else self._realms(now, part.realm)
        loaded = [row["loaded_until"] for row in sources]
        is_everything = part == EVERYTHING
        return LiveState(
            now=now,
            loaded_until=min(loaded) if loaded and None not in loaded else None,
            live=self._live_of_user(part.user_key)
            if part.user_key
            else sum(realm.row["live"] for realm in realms),
            sources=sources if is_everything else [],
            gaps=self._gaps({row["source"] for row in sources}) if is_everything else [],
            everything=self._activity(part.key, {}),
            realms=realms,
            users=self._active_users(sessions, part),
            sessions=sessions,
            without_cells=self._reader.without_cells,
        )

    def _rows(self, query: ViewQuery) -> list[Row]:
        return self._reader.read_rows(query)

    def _gaps(self, sources_in_service: Collection[str]) -> list[Row]:
        """The gaps of the last day. One of a retired source may never end."""
        rows = self._rows(view_queries.gaps(since=HoursAgo(GAP_HOURS)))
        return [gap for gap in rows if gap["to_at"] or gap["source"] in sources_in_service]

    def _read_traffic(self, source: Row) -> None:
        """Add what a source reported since it was read the last time."""
        traffic = self._traffic.setdefault(source["source"], _SourceTraffic())
        until: datetime | None = source["loaded_until"]
        if until is None:
            return
        to = ReportPosition(source["epoch"], source["position"])
        begin = until - timedelta(seconds=LONG_SECONDS)
        since = max(begin, traffic.read_until or begin)
        rows = self._rows(
            session_queries.recent_traffic(
                source["source"], since, after=traffic.read_to, to=to, most=self._most_reports
            )
        )
        traffic.read_to, traffic.read_until = to, until
        covered_from = max([since, *(row["covered_from"] for row in rows[:1])])
        if traffic.covered_from is None or covered_from > since:
            traffic.covered_from = covered_from
        for row in sorted(rows, key=lambda row: row["received_at"]):
            if row["confirmed"]:
                self._add(traffic, row)
        traffic.short.move_to(until, traffic.covered_from)
        traffic.long.move_to(until, traffic.covered_from)

    def _add(self, traffic: _SourceTraffic, row: Row) -> None:
        keys: list[Key] = [None, row["realm"], row["user_key"]]
        self._users[row["user_key"]] = _user_of(row)
        if row["session_id"] is not None:
            keys.append(row["session_id"])
            self._session_users[row["session_id"]] = row["user_key"]
        for rates in (traffic.short, traffic.long):
            rates.add(row["received_at"], keys, row["received_bytes"], row["sent_bytes"])

    def _forget_idle(self) -> None:
        active: set[Key] = set()
        for traffic in self._traffic.values():
            active.update(traffic.long.keys())
        for names in (self._users, self._session_users):
            for key in names.keys() - active:
                del names[key]

    def _short(self, key: Key) -> Rate:
        return _sum(traffic.short.rate(key) for traffic in self._traffic.values())

    def _long(self, key: Key) -> Rate:
        return _sum(traffic.long.rate(key) for traffic in self._traffic.values())

    def _activity(self, key: Key, row: Mapping[str, Any]) -> Activity:
        return Activity(row=row, short=self._short(key), long=self._long(key))

    def _busiest(self, among: Mapping[UUID, Any]) -> set[UUID]:
        """The keys with most traffic in either span, of each source."""
        busiest: set[Key] = set()
        for traffic in self._traffic.values():
            for rates in (traffic.short, traffic.long):
                busiest.update(rates.busiest(LISTED, among))
        return {key for key in busiest if isinstance(key, UUID)}

    def _users_in(self, part: LivePart) -> Mapping[UUID, Mapping[str, Any]]:
        """The users of a part that reported lately."""
        if part.user_key is not None:
            return {key: row for key, row in self._users.items() if key == part.user_key}
        if part.realm is not None:
            return {key: row for key, row in self._users.items() if row["realm"] == part.realm}
        return self._users

    def _sessions_in(self, part: LivePart) -> Mapping[UUID, UUID]:
        """The sessions of a part that reported lately, with their users."""
        if part == EVERYTHING:
            return self._session_users
        users = self._users_in(part)
        return {key: user for key, user in self._session_users.items() if user in users}

    def _sessions(self, part: LivePart) -> list[Activity]:
        """Live sessions: the busiest ones, the oldest and the newest."""
        busiest = self._busiest(self._sessions_in(part))
        rows = self._rows(session_queries.sessions_by_id(list(busiest)))
        oldest = Arrangement(by="started_at", limit=LISTED)
        for arrangement in (Arrangement(limit=LISTED), oldest):
            query = session_queries.sessions(
                realm=part.realm, user_key=part.user_key, live=True, arrangement=arrangement
            )
            rows += self._rows(query)
        for row in rows:
            if row["ended_at"] is not None:
                self._session_users.pop(row["session_id"], None)
        by_id = {row["session_id"]: row for row in rows if row["ended_at"] is None}
        return [self._activity(session_id, row) for session_id, row in by_id.items()]

    def _active_users(self, sessions: Sequence[Activity], part: LivePart) -> list[Activity]:
        users = dict(self._users_in(part))
        session_users = dict(self._sessions_in(part))
        for session in sessions:
            users[session.row["user_key"]] = _user_of(session.row)
            if self._reported_lately(session.row):  # also what is no traffic, as a refresh
                session_users[session.row["session_id"]] = session.row["user_key"]
        active = Counter(session_users.values())
        listed = {*self._busiest(users), *(session.row["user_key"] for session in sessions)}
        return [self._activity(key, {**users[key], "active": active[key]}) for key in listed]

    def _reported_lately(self, session: Mapping[str, Any]) -> bool:
        """Whether a session reported in the long span, which ends where its source is loaded."""
        traffic = self._traffic.get(session["source"])
        if traffic is None or traffic.read_until is None:
            return False
        lately = traffic.read_until - timedelta(seconds=LONG_SECONDS)
        return bool(session["last_seen_at"] >= lately)

    def _live_of_user(self, user_key: UUID) -> int:
        [row] = self._rows(session_queries.live_sessions_of_user(user_key))
        return int(row["live"])

    def _realms(self, now: datetime, of_realm: str | None) -> list[Activity]:
        """Every realm that has live sessions, or had usage in the last hours."""
        hours: dict[str, list[float]] = {}
        for row in self._rows(
            usage_queries.usage(by="realm", per="hour", realm=of_realm, since=HoursAgo(USAGE_HOURS))
        ):
            number = USAGE_HOURS - 1 - (now - row["starts_at"]) // timedelta(hours=1)
            if 0 <= number < USAGE_HOURS:
                seconds = (min(row["ends_at"], now) - row["starts_at"]).total_seconds()
                rates = hours.setdefault(row["realm"], [0.0] * USAGE_HOURS)
                rates[number] = (row["received_bytes"] + row["sent_bytes"]) / max(seconds, 60.0)
        realms = [
            {
                "realm": row["realm"],
                "live": int(row["live"]),
                "hours": hours.get(row["realm"], [0.0] * USAGE_HOURS),
            }
            for row in self._rows(session_queries.live_sessions_by_realm(of_realm))
            if row["live"] or row["realm"] in hours
        ]
        return [self._activity(row["realm"], row) for row in realms]


def _user_of(row: Row) -> Mapping[str, Any]:
    return {name: row[name] for name in ("realm", "user_id", "user_key")}


def _sum(rates: Iterable[Rate]) -> Rate:
    total = Rate()
    for rate in rates:
        total = total.plus(rate)
    return total
