"""What ``top`` shows: a frame of text, or a document for programs, and its order."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from accounting.cli.table import Column, Kind, Row, Total, terminal_lines
from accounting.cli.terminal_text import BOLD, DIM, RED, YELLOW, Style, encodable, isolate_direction
from accounting.domain.gap_causes import cause_in_words
from accounting.domain.human_text import human_bytes, human_seconds, second, visible_name
from accounting.domain.session_ids import short_session_id
from accounting.errors import UsageError, without_cells_text
from accounting.plurals import counted
from accounting.reporting.completeness import not_captured
from accounting.reporting.live import (
    GAP_HOURS,
    LONG_SECONDS,
    SHORT_SECONDS,
    Activity,
    LiveState,
)

LATE_SECONDS: Final = 10
VERY_LATE_SECONDS: Final = 60
SHOWN_SOURCES: Final = 3
SHOWN_GAPS: Final = 3
SMALL_SCREEN_LINES: Final = 16
"""A screen of fewer lines has no realms, no empty lines, and of sources and gaps the worst."""
BLOCKS: Final = "·▁▂▃▄▅▆▇█"
ASCII_BLOCKS: Final = ".:-=+*#%@"
SUBJECTS: Final = ("users", "sessions")
_SHORT: Final = f"{SHORT_SECONDS} s"
_LONG: Final = f"{LONG_SECONDS // 60} min"


@dataclass(frozen=True, slots=True)
class Order:
    """A way to sort: its key on the keyboard, its title, and what it goes by."""

    key: str
    title: str
    rank: Callable[[Activity], Any]


def _name(activity: Activity) -> tuple[str, str]:
    return activity.row["realm"], activity.row["user_id"]


ORDERS: Final[Mapping[str, Mapping[str, Order]]] = {
    "users": {
        "rate": Order("r", f"traffic over {_SHORT}", lambda user: -user.short.total),
        "minutes": Order("m", f"traffic over {_LONG}", lambda user: -user.long.total),
        "active": Order("a", "active sessions", lambda user: -user.row["active"]),
        "name": Order("n", "name", _name),
    },
    "sessions": {
        "rate": Order("r", f"traffic over {_SHORT}", lambda session: -session.short.total),
        "minutes": Order("m", f"traffic over {_LONG}", lambda session: -session.long.total),
        "bytes": Order("b", "bytes", lambda session: -_bytes(session.row)),
        "time": Order("t", "time", lambda session: session.row["started_at"]),
        "name": Order("n", "name", _name),
    },
}


class TopView:
    """What is shown, and how it is sorted. Raises UsageError for what can't be."""

    def __init__(self, *, subject: str, order: str) -> None:
        if subject not in SUBJECTS:
            raise UsageError(f"--by {subject.removesuffix('s')!r}: expected user or session")
        if order not in ORDERS[subject]:
            raise UsageError(
                f"--sort {order!r}: expected one of {', '.join(ORDERS[subject])} with --by "
                f"{subject.removesuffix('s')}"
            )
        self._subject = subject
        self._orders = dict.fromkeys(SUBJECTS, "rate") | {subject: order}
        self._style = Style()
        encoding = sys.stdout.encoding
        self._encoding = encoding
        self._has_blocks = encodable(BLOCKS, encoding) == BLOCKS

    def press(self, key: str) -> None:
        """Obey a key; others do nothing."""
        for subject in SUBJECTS:
            if key == subject[0]:
                self._subject = subject
        for name, order in ORDERS[self._subject].items():
            if key == order.key:
                self._orders[self._subject] = name

    def frame(
        self,
        state: LiveState,
        *,
        columns: int,
        lines: int,
        exact: bool = False,
        problem: str = "",
        with_keys: bool = False,
    ) -> list[str]:
        """The lines of a frame, at most ``lines``. ``exact``: plain numbers, for programs."""
        is_small = lines < SMALL_SCREEN_LINES
        shown = self._head(state, problem, is_small=is_small)
        order = ORDERS[self._subject][self._orders[self._subject]]
        listed = self._listed(state)
        if not is_small:
            shown.append("")
            room = lines - len(shown) - 5 - with_keys  # headings, total, an empty line, the title
            shown += [*self._realms(state, columns, max(1, room // 3), exact=exact), ""]
        shown.append(self._style(f"{self._subject} by {order.title}", BOLD))
        room = max(0, lines - len(shown) - with_keys)
        rows = [_row(activity, state.now) for activity in listed[:room]]
        if rows:
            kinds = _user_columns(exact) if self._subject == "users" else _session_columns(exact)
            shown += terminal_lines(rows, kinds, width=columns, exact=exact)[:room]
        else:
            shown += [f"No {self._subject}."][:room]
        if with_keys:
            shown += [""] * (lines - 1 - len(shown))
            shown = [*shown[: lines - 1], self._style(self._keys(), DIM)]
        return shown[:lines]

    def document(self, state: LiveState) -> Mapping[str, Any]:
        """What a frame shows, for programs: nothing is left out."""
        return {
            "now": state.now,
            **({"without_cells": list(state.without_cells)} if state.without_cells else {}),
            "live_sessions": _live(state.realms),
            "sources": list(map(dict, state.sources)),
            "gaps": list(map(dict, state.gaps)),
            "total": _rates(state.everything),
            "realms": [
                {
                    "realm": realm.row["realm"],
                    "live_sessions": realm.row["live"],
                    **_rates(realm),
                    "bytes_per_second_by_hour": list(map(round, realm.row["hours"])),
                }
                for realm in _busiest_first(state.realms)
            ],
            self._subject: [
                {**activity.row, **_rates(activity)} for activity in self._listed(state)
            ],
        }

    def _listed(self, state: LiveState) -> list[Activity]:
        """The users or sessions in their order."""
        order = ORDERS[self._subject][self._orders[self._subject]]
        return sorted(
            state.users if self._subject == "users" else state.sessions,
            key=lambda activity: (order.rank(activity), _name(activity)),
        )

    def _keys(self) -> str:
        other = next(subject for subject in SUBJECTS if subject != self._subject)
        sorts = "  ".join(f"{order.key} {name}" for name, order in ORDERS[self._subject].items())
        return f"q quit  {other[0]} {other}  sort: {sorts}"

    def _head(self, state: LiveState, problem: str, *, is_small: bool) -> list[str]:
        live = _live(state.realms)
        lines = [
            self._style(
                f"{second(state.now.astimezone(UTC))} UTC  {_count(live, 'live session')} in "
                f"{_count(len(state.realms), 'realm')}",
                BOLD,
            )
        ]
        if problem:
            lines.append(self._style(f"not refreshed: {problem}", RED))
        if state.without_cells:
            text = f"incomplete: {without_cells_text(state.without_cells)}"
            lines.append(self._style(text, RED))
        sources = sorted(state.sources, key=lambda source: -_lag_seconds(source, state.now))
        lapses = {
            lapse.source: lapse.since
            for lapse in not_captured(state.now, state.sources, state.gaps)
            if lapse.since is not None
        }
        shown_sources = 1 if is_small else SHOWN_SOURCES
        for source in sources[:shown_sources]:
            lines.append(self._source(source, state))
            if since := lapses.get(source["source"]):
                text = f"  nothing is captured since {second(since.astimezone(UTC))} UTC"
                lines.append(self._style(f"{text}: messages may be lost", RED))
        if len(sources) > shown_sources:
            others = _count(len(sources) - shown_sources, "source")
            lines.append(f"and {others} less far behind")
        if not sources:
            lines.append("No source is known yet.")
        gaps = self._gaps(state, " is recorded yet" if lapses else "")
        return [*lines, *(gaps[:1] if is_small else gaps)]

    def _source(self, source: Row, state: LiveState) -> str:
        """How far a source is behind; coloured where that is long."""
        name = self._shown_name(source["source"])
        captured_until: datetime | None = source["captured_until"]
        if captured_until is None:
            return self._style(f"{name}: not captured yet", YELLOW)
        lag = _lag_seconds(source, state.now)
        parts = [f"captured {_ago(state.now, captured_until)} ago"]
        for label, reached in (
            ("to load", source["loaded_until"]),
            ("to settle", source["settled_until"]),
        ):
            behind = "all" if reached is None else _ago(captured_until, reached)
            parts.append(f"{label} {behind}")
        colour = RED if lag >= VERY_LATE_SECONDS else YELLOW if lag >= LATE_SECONDS else ""
        return self._style(f"{name}: {', '.join(parts)}", colour)

    def _gaps(self, state: LiveState, yet: str) -> list[str]:
        """The open gaps, and those that ended within a day: a line each, the newest ones."""
        if not state.gaps:
            return [f"no gap{'' if yet else 's'} in {GAP_HOURS} h{yet}"]
        open_gaps = [gap for gap in state.gaps if gap["to_at"] is None]
        ended = [gap for gap in state.gaps if gap["to_at"] is not None]
        lines = [
            self._style(f"gap open for {self._gap(gap, state.now)}", RED)
            for gap in open_gaps[:SHOWN_GAPS]
        ]
        if len(open_gaps) > SHOWN_GAPS:
            lines.append(self._style(f"and {len(open_gaps) - SHOWN_GAPS:,} more open", RED))
        count = f"{_count(len(ended), 'gap')} in {GAP_HOURS} h"
        if len(ended) == 1:
            lines.append(self._style(f"{count}, {self._gap(ended[0], state.now)}", YELLOW))
        elif ended:
            day = timedelta(hours=GAP_HOURS)
            lengths = (gap["to_at"] - max(gap["from_at"], state.now - day) for gap in ended)
            seconds = round(sum(lengths, timedelta()).total_seconds())
            shown = ended[: max(1, SHOWN_GAPS - len(open_gaps))]
            more = " see turn-accounting gaps" if len(ended) > len(shown) else ""
            lines.append(self._style(f"{count}, {human_seconds(seconds)} in all:{more}", YELLOW))
            lines += [self._style(f"  {self._gap(gap, state.now)}", YELLOW) for gap in shown]
        return lines

    def _gap(self, gap: Row, now: datetime) -> str:
        return (
            f"{_ago(gap['to_at'] or now, gap['from_at'])} from "
            f"{second(gap['from_at'].astimezone(UTC))} UTC: {cause_in_words(gap['cause'])}, "
            f"{self._shown_name(gap['source'])}"
        )

    def _realms(self, state: LiveState, width: int, most: int, *, exact: bool) -> list[str]:
        """The busiest realms, what the others have together, and the total."""
        ordered = _busiest_first(state.realms)
        if len(ordered) == most + 1:
            most += 1  # the line of "1 other" has room for its name
        hour_count = 24 if width >= 96 else 12
        rows = []
        for realm in ordered[:most]:
            row = _row(realm, state.now)
            rows.append({**row, "hours": self._sparkline(realm.row["hours"][-hour_count:])})
        columns = [
            Column(field="realm", heading="realm", kind=Kind.NAME),
            Column(field="live", heading="live", kind=Kind.COUNT),
            *_rate_columns(exact),
            Column(field="hours", heading=f"{hour_count} h", rank=1),
        ]
        totals = []
        if len(ordered) > most:
            others = ordered[most:]
            totals.append(
                Total(
                    label=counted(len(others), "other"),
                    sums={
                        "live": _live(others),
                        "received": sum(realm.short.received for realm in others),
                        "sent": sum(realm.short.sent for realm in others),
                        "long": sum(realm.long.total for realm in others),
                    },
                )
            )
        sums = _row(state.everything, state.now)
        sums["live"] = _live(ordered)
        totals.append(Total(label="total", sums=sums))
        return terminal_lines(rows, columns, width=width, totals=totals, exact=exact)

    def _sparkline(self, rates: Sequence[float]) -> str:
        """A character for each rate; the highest rate is the highest one."""
        blocks = BLOCKS if self._has_blocks else ASCII_BLOCKS
        highest = max(rates)
        return "".join(
            blocks[max(1, round(rate / highest * (len(blocks) - 1)))] if rate > 0 else blocks[0]
            for rate in rates
        )

    def _shown_name(self, name: str) -> str:
        text = encodable(visible_name(name), self._encoding)
        return isolate_direction(text) if sys.stdout.isatty() else text


def _live(realms: Iterable[Activity]) -> int:
    """The live sessions of realms."""
    return sum(realm.row["live"] for realm in realms)


def _busiest_first(realms: Iterable[Activity]) -> list[Activity]:
    return sorted(
        realms, key=lambda realm: (-realm.long.total, -realm.row["live"], realm.row["realm"])
    )


def _rates(activity: Activity) -> dict[str, int]:
    """The rates of both spans, for programs."""
    return {
        f"{direction}_bytes_per_second_{seconds}s": round(getattr(rate, direction))
        for seconds, rate in ((SHORT_SECONDS, activity.short), (LONG_SECONDS, activity.long))
        for direction in ("received", "sent")
    }


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _rate_text(rate: float) -> str:
    return f"{human_bytes(round(rate))}/s" if rate else ""


def _rate_columns(exact: bool) -> list[Column]:
    if exact:
        return [
            Column(field="received", heading=f"received B/s {_SHORT}", kind=Kind.COUNT),
            Column(field="sent", heading=f"sent B/s {_SHORT}", kind=Kind.COUNT),
            Column(field="long", heading=f"B/s {_LONG}", kind=Kind.COUNT),
        ]
    return [
        Column(field="received", heading="received", kind=Kind.BYTES, text=_rate_text),
        Column(field="sent", heading=f"sent ({_SHORT})", kind=Kind.BYTES, text=_rate_text),
        Column(field="long", heading=f"total ({_LONG})", kind=Kind.BYTES, text=_rate_text),
    ]


def _user_columns(exact: bool) -> list[Column]:
    return [
        Column(field="realm", heading="realm", kind=Kind.NAME),
        Column(field="user_id", heading="user", kind=Kind.NAME),
        Column(field="active", heading="active", kind=Kind.COUNT, rank=1),
        *_rate_columns(exact),
    ]


def _session_columns(exact: bool) -> list[Column]:
    return [
        Column(
            field="session_id", heading="session", text=str if exact else short_session_id, rank=3
        ),
        Column(field="realm", heading="realm", kind=Kind.NAME),
        Column(field="user_id", heading="user", kind=Kind.NAME),
        Column(field="source", heading="source", kind=Kind.TEXT, rank=5),
        Column(field="transport", heading="transport", rank=4),
        Column(field="open_seconds", heading="time", kind=Kind.SECONDS, rank=1),
        *_rate_columns(exact),
        Column(field="bytes", heading="bytes", kind=Kind.BYTES, rank=2),
    ]


def _row(activity: Activity, now: datetime) -> dict[str, Any]:
    """The fields of a realm, user or session in the tables."""
    row = {
        **activity.row,
        "received": round(activity.short.received),
        "sent": round(activity.short.sent),
        "long": round(activity.long.total),
    }
    if "started_at" in row:
        row["open_seconds"] = max(0, round((now - row["started_at"]).total_seconds()))
        row["bytes"] = _bytes(row)
    return row


def _bytes(session: Mapping[str, Any]) -> int:
    total: int = session["received_bytes"] + session["sent_bytes"]
    return total


def _lag_seconds(source: Row, now: datetime) -> float:
    """How long ago everything was received that is in the sessions; 0 before the first capture."""
    captured_until: datetime | None = source["captured_until"]
    if captured_until is None:
        return 0.0
    return (now - (source["settled_until"] or captured_until)).total_seconds()


def _ago(now: datetime, then: datetime) -> str:
    return human_seconds(max(0, round((now - then).total_seconds())))
