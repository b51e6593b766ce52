"""The commands for limits of usage: ``limit set|list|status|remove``."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from accounting.cli.arguments import MAX_INTEGER, Realm, list_options, name_argument
from accounting.cli.output import write_message
from accounting.cli.resources import command_settings, writer_engine
from accounting.cli.rows import ListForm, Listing, write_query
from accounting.cli.table import Column, Kind
from accounting.domain.amounts import MAX_AMOUNT, parse_bytes
from accounting.domain.human_text import human_bytes, human_seconds, minute
from accounting.domain.limits import Direction, Measure, Per
from accounting.errors import UsageError
from accounting.plurals import counted
from accounting.reporting import limit_queries

if TYPE_CHECKING:
    from accounting.db.engine import Engine
    from accounting.usage.limits.limit_rules import SetLimit, UsageOfLimits

MAX_PERCENT: Final = 1000
_PERS: Final = ("hour", "day", "month", "period")
_DIRECTIONS: Final = ("both", "received", "sent")


def register(app: typer.Typer) -> None:
    """Add the group ``limit``."""
    group = typer.Typer(
        help="Set, list and remove limits of usage, and show how much is used.",
        no_args_is_help=True,
    )
    group.command("set")(set_limit)
    group.command("list")(list_limits)
    group.command("status")(status)
    group.command("remove")(remove)
    app.add_typer(group, name="limit")


def set_limit(
    realm: Annotated[
        str, typer.Option("--realm", parser=name_argument, help="The realm that is limited.")
    ],
    per: Annotated[
        str,
        typer.Option(
            "--per",
            metavar="hour|day|month|period",
            help="In which time, by the realm's time zone; period: a billing period.",
        ),
    ],
    user: Annotated[
        str | None,
        typer.Option("--user", parser=name_argument, help="Limits only this user_id of the realm."),
    ] = None,
    every_user: Annotated[
        bool, typer.Option("--every-user", help="Limits each user of the realm, also new ones.")
    ] = False,
    bytes_: Annotated[
        str | None,
        typer.Option("--bytes", metavar="AMOUNT", help="Bytes, such as 100GB, 1.5TB or 1TiB."),
    ] = None,
    sessions: Annotated[
        int | None,
        typer.Option("--sessions", min=1, max=MAX_AMOUNT, help="Sessions that start."),
    ] = None,
    session_seconds: Annotated[
        int | None,
        typer.Option(
            "--session-seconds", min=1, max=MAX_INTEGER, help="Seconds that sessions are open."
        ),
    ] = None,
    direction: Annotated[
        str,
        typer.Option(
            "--direction",
            metavar="both|received|sent",
            help="Which bytes count: received from clients, or sent to them.",
        ),
    ] = "both",
    warn: Annotated[
        str | None,
        typer.Option(
            "--warn",
            metavar="PERCENTS",
            help="Events also at these percents, at most ten, such as 50,80,95.",
        ),
    ] = None,
) -> None:
    """Limit the usage of a realm, of one user, or of each of its users.

    The feed gets an event when the amount is reached, and at each percent of
    --warn. Nothing is cut off: what reads the feed decides. Without --user and
    --every-user all users of the realm count together.

    Usage of the hour, day, month or period that runs now counts at once. Setting
    a limit of the same usage again changes it.
    """
    from accounting.usage.limits import limit_rules

    if user is not None and every_user:
        raise UsageError("--user goes without --every-user")
    measure, amount = _amount(bytes_, sessions, session_seconds)
    if per not in _PERS:
        raise UsageError(f"--per {per!r}: expected hour, day, month or period")
    if direction not in _DIRECTIONS:
        raise UsageError(f"--direction {direction!r}: expected both, received or sent")
    if direction != "both" and measure != "bytes":
        raise UsageError("--direction goes with --bytes")
    chosen = cast(Direction, direction)
    with writer_engine(command_settings()) as engine:
        done = limit_rules.set_limit(
            engine,
            realm,
            user=user,
            every_user=every_user,
            measure=measure,
            direction=chosen,
            per=cast(Per, per),
            amount=amount,
            warnings=_parse_percents(warn),
            usage=_usage(engine),
        )
    write_message(_describe(done, measure, chosen))


def _usage(engine: "Engine") -> "UsageOfLimits":
    from accounting.front.limits.evaluate_limits import USAGE_OF_CELLS
    from accounting.ops.service import is_front_database
    from accounting.usage.limits.limit_rules import OWN_USAGE

    return USAGE_OF_CELLS if is_front_database(engine) else OWN_USAGE


def _describe(done: "SetLimit", measure: Measure, direction: Direction) -> str:
    """What setting a limit did."""
    before = done.before
    if before is None:
        text = f"limit {done.limit_id} is set"
    elif not done.is_changed:
        text = f"limit {done.limit_id} is as it was"
    else:
        amount = _amount_text({"measure": measure, "direction": direction, "amount": before.amount})
        percents = ", ".join(map(str, before.thresholds))
        text = f"limit {done.limit_id} is changed; it was {amount}, with events at {percents} %"
    return f"{text}; usage so far makes {_events_text(done.reached, done.cleared)}"


def _events_text(reached: int, cleared: int) -> str:
    texts = [
        f"{counted(number, 'event')} {event_type}"
        for number, event_type in ((reached, "limit.reached"), (cleared, "limit.cleared"))
        if number
    ]
    return " and ".join(texts) or "no events"


def _amount(
    bytes_: str | None, sessions: int | None, session_seconds: int | None
) -> tuple[Measure, int]:
    given: list[tuple[Measure, int]] = []
    if bytes_ is not None:
        amount = parse_bytes(bytes_)
        if amount is None:
            raise UsageError(
                f"--bytes {bytes_!r}: expected whole bytes, from 1 to 2^63-1, such as 100GB or 1TiB"
            )
        given.append(("bytes", amount))
    if sessions is not None:
        given.append(("sessions", sessions))
    if session_seconds is not None:
        given.append(("session_seconds", session_seconds))
    if len(given) != 1:
        raise UsageError("expected one of --bytes, --sessions and --session-seconds")
    return given[0]


def _parse_percents(text: str | None) -> list[int]:
    if text is None:
        return []
    words = [word.strip().removesuffix("%") for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) <= 4 for word in words):
        raise UsageError(f"--warn {text!r}: expected whole percents, such as 50,80,95")
    percents = [int(word) for word in words]
    if not all(1 <= percent <= MAX_PERCENT for percent in percents):
        raise UsageError(f"--warn {text!r}: expected percents from 1 to {MAX_PERCENT}")
    return percents


def _whom(limit: Mapping[str, Any]) -> str:
    match limit["whom"]:
        case "realm":
            return "the realm"
        case "user":
            return _user_name(limit)
        case _:
            return "every user"


def _user_name(row: Mapping[str, Any]) -> str:
    """A user without a name may have been erased: the key tells which one it is."""
    return str(row["user_id"] or f"no name, key {row['user_key']}")


def _amount_text(limit: Mapping[str, Any]) -> str:
    match limit["measure"]:
        case "bytes":
            way = "" if limit["direction"] == "both" else f" {limit['direction']}"
            return f"{human_bytes(limit['amount'])}{way}"
        case "sessions":
            return counted(limit["amount"], "session")
        case _:
            return human_seconds(limit["amount"])


_PLAIN: Final = {
    "limit_id": "limit",
    "realm": "realm",
    "whom": "whom",
    "user_id": "user_id",
    "measure": "measure",
    "direction": "direction",
    "per": "per",
    "amount": "amount",
}
_COLUMNS: Final = (
    Column(field="limit_id", heading="limit", kind=Kind.COUNT),
    Column(field="realm", heading="realm", kind=Kind.NAME),
    Column(field="limited", heading="whom", kind=Kind.NAME),
    Column(field="limit", heading="amount"),
    Column(field="per", heading="per"),
)
"""How lists show a limit."""
_LIMITS: Final = Listing(
    plain={
        **_PLAIN,
        "thresholds": "events at %",
        "set_at": "set",
    },
    columns=(
        *_COLUMNS,
        Column(field="percents", heading="events at %"),
        Column(field="set_at", heading="set (UTC)", text=minute, rank=1),
    ),
    rank="amount",
    empty="There are no limits yet.",
    fields={
        "limited": _whom,
        "limit": _amount_text,
        "percents": lambda limit: ", ".join(map(str, limit["thresholds"])),
    },
)


@list_options(lambda: _LIMITS)
def list_limits(realm: Realm = None, *, form: ListForm) -> None:
    """List the limits of usage, and at which percents each makes events."""
    write_query(
        command_settings(),
        lambda arrangement: limit_queries.limits(realm, arrangement=arrangement),
        _LIMITS,
        form,
        realm=realm,
        leaves_out_cells=False,
    )


_USAGE: Final = Listing(
    plain={
        **_PLAIN,
        "usage": "usage",
        "percent": "percent",
        "ends_at": "until",
    },
    columns=(
        *_COLUMNS,
        Column(field="used", heading="used"),
        Column(field="percent", heading="percent"),
        Column(field="ends_at", heading="until (UTC)", text=minute, rank=1),
    ),
    rank="percent",
    empty="There are no limits of usage in an hour, day, month or period that runs now.",
    default_limit=20,
    fields={
        "limited": lambda row: "the realm" if row["whom"] == "realm" else _user_name(row),
        "limit": _amount_text,
        "used": lambda row: _amount_text({**row, "amount": row["usage"], "direction": "both"}),
    },
)


@list_options(lambda: _USAGE)
def status(realm: Realm = None, *, form: ListForm) -> None:
    """Show how much of each limit is used now, the nearest users first.

    Of a limit of every user these are the users with most usage in the hour,
    day, month or period that runs now.
    """
    write_query(
        command_settings(),
        lambda arrangement: limit_queries.nearest(realm, arrangement=arrangement),
        _USAGE,
        form,
        realm=realm,
        leaves_out_cells=False,
    )


def remove(
    limit_id: Annotated[
        int,
        typer.Argument(
            metavar="NUMBER", min=1, max=MAX_INTEGER, help="Its number in `limit list`."
        ),
    ],
) -> None:
    """Remove a limit. Events that it made stay in the feed.

    What it has reached in the hour, day, month or period that runs now is
    cleared, with an event each.
    """
    from accounting.usage.limits import limit_rules

    with writer_engine(command_settings()) as engine:
        cleared = limit_rules.remove_limit(engine, limit_id, usage=_usage(engine))
    write_message(f"limit {limit_id} is removed; that makes {_events_text(0, cleared)}")
