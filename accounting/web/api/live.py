"""What happens now: what ``turn-accounting top`` shows."""

import threading
import time
from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from accounting.reporting.completeness import MAX_CAPTURE_LAG
from accounting.reporting.live import (
    LONG_SECONDS,
    SHORT_SECONDS,
    Activity,
    LivePart,
    LiveReader,
    LiveState,
)
from accounting.reporting.row_text import json_object
from accounting.reporting.traffic_rates import Rate
from accounting.web.api.openapi import describe
from accounting.web.books import BooksDependency
from accounting.web.render import json_response

router = APIRouter(tags=["live"])

FRESH_SECONDS: Final = 1.0
"""A state that is younger is given to all who ask for it."""
KEPT_PARTS: Final = 32
MOST_REPORTS: Final = 2_000
"""No more reports are read at once: the rates of a busier server are of the newest."""


class LiveStates:
    """The states of parts of the books, read for all who ask at about the same time."""

    def __init__(self, reader: LiveReader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._states: dict[LivePart, tuple[float, LiveState]] = {}

    def state(self, part: LivePart) -> LiveState:
        """The state of a part, at most a second old."""
        with self._lock:
            read_at, state = self._states.get(part, (0.0, None))
            if state is None or time.monotonic() - read_at >= FRESH_SECONDS:
                state = self._reader.read(part)
                self._states.pop(part, None)  # so that the oldest is first
                self._states[part] = time.monotonic(), state
                while len(self._states) > KEPT_PARTS:
                    del self._states[next(iter(self._states))]
            return state


async def _live_states(request: Request) -> LiveStates:
    app = request.app
    states: LiveStates | None = getattr(app.state, "live_states", None)
    if states is None:
        reader = LiveReader(app.state.database, most_reports=MOST_REPORTS)
        states = app.state.live_states = LiveStates(reader)
    return states


LiveStatesDependency = Annotated[LiveStates, Depends(_live_states)]


@router.get("/live", responses=describe("Live"))
def show_live(books: BooksDependency, states: LiveStatesDependency) -> Response:
    """Open sessions, users and realms with their rates, at most a second old.

    coturn reports a session's traffic after every 4,096 packets and when it ends.
    """
    state = states.state(books.live_part())
    books.note_without_cells(state.without_cells)
    return json_response(json_object(live_fields(state)))


def live_fields(state: LiveState) -> Mapping[str, Any]:
    """The members of the answer. The rates are null where loading stands still."""
    until = state.loaded_until
    is_known = until is None or state.now - until <= MAX_CAPTURE_LAG

    def rates(activity: Activity) -> dict[str, Any]:
        return {
            "short": _rate(activity.short) if is_known else None,
            "long": _rate(activity.long) if is_known else None,
        }

    def activity_fields(activity: Activity) -> dict[str, Any]:
        return {**activity.row, **rates(activity)}

    return {
        **({"without_cells": state.without_cells} if state.without_cells else {}),
        "now": state.now,
        "loaded_until": state.loaded_until,
        "short_seconds": SHORT_SECONDS,
        "long_seconds": LONG_SECONDS,
        "everything": {"live": state.live, **rates(state.everything)},
        "realms": [activity_fields(realm) for realm in state.realms],
        "users": [activity_fields(user) for user in state.users],
        "sessions": [activity_fields(session) for session in state.sessions],
        "sources": state.sources,
        "gaps": state.gaps,
    }


def _rate(rate: Rate) -> dict[str, float]:
    return {"received": round(rate.received, 3), "sent": round(rate.sent, 3)}
