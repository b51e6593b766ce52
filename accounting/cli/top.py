"""The command ``top``: what happens now, refreshed until a key ends it."""

import sys
import time
from contextlib import suppress
from typing import Annotated, Final

import typer

from accounting.cli.output import flush_output, note_without_cells, write, write_json
from accounting.cli.resources import command_settings, open_reader
from accounting.cli.screen import TerminalLost, open_screen, screen_size
from accounting.cli.table import UNLIMITED
from accounting.cli.top_view import TopView
from accounting.errors import ConnectionLost
from accounting.reporting.live import (
    LiveReader,
    LiveState,
)

QUERY_SHARE: Final = 4
"""The pause is at least so many times as long as the queries took."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("top")(top)


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    by: Annotated[
        str, typer.Option("--by", metavar="user|session", help="What is listed.")
    ] = "user",
    sort: Annotated[
        str,
        typer.Option(
            "--sort",
            metavar="rate|minutes|name|active|bytes|time",
            help="The order; active of users only, bytes and time of sessions only.",
        ),
    ] = "rate",
    every: Annotated[
        float,
        typer.Option(
            "--every", metavar="SECONDS", min=0.5, max=3600, help="How often it is refreshed."
        ),
    ] = 2.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one frame as one JSON object, and end.")
    ] = False,
) -> None:
    """Show live sessions, users and realms with rates, refreshed.

    Rates are of the last 10 seconds and 2 minutes that are loaded. coturn
    reports a session's traffic after every 4,096 packets, which it counts at
    the client and at the peer, and when the session ends: a call of 100
    packets a second reports every 20 seconds. So the 10 seconds describe a
    realm, and the 2 minutes a session. The traffic of TCP allocations is in no
    rate. Columns: "live" are a realm's open sessions;
    "12 h" or "24 h" its traffic by hour, to its own scale; "active" a user's
    open sessions that reported within 2 minutes; "time" how long a session
    has been open; "session" its id for `trace --session`, where it fits.

    Keys: u users, s sessions; sort by r rate, m 2 minutes, n name, a active
    sessions, b bytes, t time; space refreshes, q ends. In a pipe it prints one
    frame, with plain numbers.
    """
    view = TopView(subject=f"{by}s", order=sort)
    with open_reader(command_settings(), leaves_out_cells=False) as views:
        reader = LiveReader(views)
        state = reader.read()
        if as_json or once or not sys.stdout.isatty():
            note_without_cells(state.without_cells)
        if as_json:
            write_json([view.document(state)])
            flush_output()
            return
        if once or not sys.stdout.isatty():
            size = screen_size()
            is_terminal = sys.stdout.isatty()
            frame = view.frame(
                state,
                columns=size.columns if is_terminal else UNLIMITED,
                lines=size.lines - 1 if is_terminal else UNLIMITED,
                exact=not is_terminal,
            )
            write("".join(f"{line}\n" for line in frame))
            flush_output()
            return
        with suppress(KeyboardInterrupt, TerminalLost):
            _run(reader, view, state, every)


def _run(reader: LiveReader, view: TopView, state: LiveState, every: float) -> None:
    """Show frames and obey keys until one of them ends it."""
    problem = ""
    due_at = time.monotonic() + every
    with open_screen() as screen:
        while True:
            size = screen_size()
            screen.show(
                view.frame(
                    state,
                    columns=size.columns,
                    lines=size.lines,
                    problem=problem,
                    with_keys=screen.replaces_frames,
                )
            )
            while (keys := screen.wait(due_at - time.monotonic())) == "":
                if screen.replaces_frames:
                    break
            if keys is not None:
                if "q" in keys or "Q" in keys:
                    return
                for key in keys:
                    view.press(key)
                if " " not in keys:
                    continue
            started_at = time.monotonic()
            try:
                state, problem = reader.read(), ""
            except ConnectionLost as error:
                problem = str(error)
            took = time.monotonic() - started_at
            due_at = started_at + took + max(every - took, QUERY_SHARE * took)
