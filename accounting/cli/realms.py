"""The commands for the rules of realms: ``realm list|set|remove``."""

import shlex
from collections.abc import Iterator, Sequence
from datetime import date
from typing import TYPE_CHECKING, Annotated, Final

import typer

from accounting.cli.arguments import MAX_INTEGER, RealmName, list_options, name_argument
from accounting.cli.output import write_message
from accounting.cli.resources import command_settings, writer_engine
from accounting.cli.rows import ListForm, Listing, arranged, write_list
from accounting.cli.table import Column, Kind
from accounting.config import environment_variable
from accounting.domain.calendar import TIME_MIN, from_micros
from accounting.domain.client_addresses import ClientAddresses, stricter
from accounting.domain.human_text import exact_text, short_time
from accounting.domain.identity import RadacctUsername, UsernameRule
from accounting.domain.realm_rules import RealmRule
from accounting.domain.time_zones import time_zone
from accounting.errors import UsageError, nearest_names, unknown_name

if TYPE_CHECKING:
    from accounting.identities.realm_rules import ChangedRules


def register(app: typer.Typer) -> None:
    """Add the group ``realm``."""
    group = typer.Typer(help="List, set and remove the rules of realms.", no_args_is_help=True)
    group.command("list")(list_realms)
    group.command("set")(set_realm)
    group.command("remove")(remove)
    app.add_typer(group, name="realm")


_REALMS: Final = Listing(
    plain={
        "realm": "realm",
        "holds_from": "from",
        "time_zone": "time zone",
        "anchor_day": "anchor day",
        "grace_seconds": "grace s",
        "username_rule": "usernames",
        "separator": "separator",
        "client_addresses": "addresses",
        "radacct_username": "radacct",
    },
    columns=(
        Column(field="realm", heading="realm", kind=Kind.NAME),
        Column(field="from", heading="from"),
        Column(field="time_zone", heading="time zone"),
        Column(field="anchor_day", heading="anchor day", kind=Kind.COUNT),
        Column(field="grace_seconds", heading="grace", kind=Kind.SECONDS),
        Column(field="username_rule", heading="usernames"),
        Column(field="separator", heading="separator", rank=1),
        Column(field="reduced", heading="addresses", optional=True),
        Column(field="bare", heading="radacct", optional=True),
    ),
    rank="holds_from",
    empty="There are no realms yet.",
    fields={
        "from": lambda rule: "always" if not rule["holds_from"] else short_time(rule["holds_from"]),
        "reduced": lambda rule: (
            "" if rule["client_addresses"] == "keep" else rule["client_addresses"]
        ),
        "bare": lambda rule: (
            "" if rule["radacct_username"] == "user@realm" else rule["radacct_username"]
        ),
    },
)


@list_options(lambda: _REALMS)
def list_realms(
    name: Annotated[
        str | None, typer.Argument(parser=name_argument, help="Only this realm.")
    ] = None,
    *,
    form: ListForm,
) -> None:
    """List the rules of realms, and from when each rule holds.

    "addresses": what is stored of clients' addresses, and "radacct": the form of
    usernames there; a terminal shows them where a realm's are not the usual ones, keep
    and user@realm.
    """
    from accounting.identities.realm_rules import list_rules, realm_names

    arrangement = _REALMS.arrangement(form)
    with writer_engine(command_settings()) as engine:
        rows = list(list_rules(engine, name))
        if name is not None and not rows:
            raise unknown_name("realm", name, realm_names(engine))
    write_list(arranged(rows, arrangement), _REALMS, form, arrangement)


def set_realm(
    name: RealmName,
    time_zone: Annotated[
        str | None, typer.Option("--time-zone", "--timezone", help="Such as Europe/Berlin.")
    ] = None,
    anchor_day: Annotated[
        int | None,
        typer.Option(
            "--anchor-day",
            min=1,
            max=31,
            help="Day on which billing periods begin; in a short month, its last day.",
        ),
    ] = None,
    grace_seconds: Annotated[
        int | None,
        typer.Option(
            "--grace-seconds",
            "--grace",
            min=0,
            max=MAX_INTEGER,
            help="A session expires this long after its allocation's lifetime.",
        ),
    ] = None,
    username_rule: Annotated[
        UsernameRule | None,
        typer.Option(
            "--username-rule",
            metavar="auto|rest|plain",
            help="How to find the user in a username; rest: TURN REST.",
        ),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            "--separator", help="Between expiry time and user in TURN REST; ':' in coturn."
        ),
    ] = None,
    client_addresses: Annotated[
        ClientAddresses | None,
        typer.Option(
            "--client-addresses",
            metavar="keep|network|drop",
            help="What is stored of clients' addresses, at once.",
        ),
    ] = None,
    holds_from: Annotated[
        str | None,
        typer.Option("--from", help="First day, YYYY-MM-DD; the first possible one by default."),
    ] = None,
    radacct_username: Annotated[
        RadacctUsername | None,
        typer.Option(
            "--radacct-username",
            metavar="user|user@realm",
            help="Names in the view radacct, at once and in all sessions.",
        ),
    ] = None,
) -> None:
    """Set some rules of a realm; its other rules stay.

    The new rules hold from the first midnight after all usage that is
    accounted, or from a later day. A new time zone ends the month, and the
    billing period, that run then: `usage` lists the parts of such a month
    apart. What is stored of clients' addresses changes at once.
    """
    from accounting.front.shared.rules import set_rules
    from accounting.ops import service

    if separator is not None and not (separator and separator.isprintable()):
        raise UsageError(f"--separator {separator!r}: expected printable characters, such as ':'")
    changes = {
        field: value
        for field, value in {
            "time_zone": time_zone,
            "anchor_day": anchor_day,
            "grace_seconds": grace_seconds,
            "username_rule": username_rule,
            "separator": separator,
        }.items()
        if value is not None
    }
    if not changes and client_addresses is None and radacct_username is None:
        raise UsageError("nothing to set: name at least one rule, such as --time-zone")
    if not changes and holds_from is not None:
        raise UsageError(
            "--from: --client-addresses and --radacct-username hold at once; name another rule "
            "for --from"
        )
    settings = command_settings()
    with writer_engine(settings, may_create=True) as engine:  # rules precede the first usage
        changed = set_rules(
            engine,
            name,
            changes,
            default=service.default_rule(settings),
            holds_from=None if holds_from is None else _parse_day(holds_from),
            client_addresses=client_addresses,
            radacct_username=radacct_username,
        )
    if changed is not None:
        _write_changes(name, changed)
        if client_addresses is not None:
            setting = ClientAddresses(settings.client_addresses)
            for sentence in _on_addresses(name, changed, setting):
                write_message(sentence)
    if radacct_username is not None:
        write_message(f"radacct names the users of realm '{name}' as {radacct_username}")


def _write_changes(name: str, changed: "ChangedRules") -> None:
    if not changed.has_usage:
        others = f": {nearest_names(name, changed.others)}" if changed.others else ""
        write_message(f"new realm '{name}', of which no session has come yet{others}")
        write_message(f"to take it back: turn-accounting realm remove {shlex.quote(name)}")
    for span, rule in _spans(changed.rules):
        write_message(f"realm '{name}' {span}: {_in_words(rule)}")
    for sentence in _cuts(changed):
        write_message(sentence)


def _on_addresses(realm: str, changed: "ChangedRules", setting: ClientAddresses) -> Iterator[str]:
    """What is stored of addresses from now on, and of earlier ones."""
    kept = stricter(changed.client_addresses, setting)
    yield f"realm '{realm}' stores from now on {_KEPT[kept]}"
    if kept is not changed.client_addresses:
        variable = environment_variable("client_addresses")
        yield f"{variable}={setting.value} is stricter than this rule, and holds"
    if kept is not ClientAddresses.KEEP and changed.has_usage:
        command = f"turn-accounting erase {shlex.quote(realm)} --client-addresses"
        yield f"addresses that are stored already stay; to reduce them too: {command}"


_KEPT: Final = {
    ClientAddresses.KEEP: "the addresses and ports of clients",
    ClientAddresses.NETWORK: "the networks of clients (/24, /48), no addresses and no ports",
    ClientAddresses.DROP: "no addresses of clients",
}


def _cuts(changed: "ChangedRules") -> Iterator[str]:
    """What a change ends at once."""
    if (period := changed.cut_period) and changed.uncut_end is not None:
        yield (
            f"the period {period.first_day} ends at {_time_text(period.ends_at, period.time_zone)} "
            f"instead of {_time_text(changed.uncut_end, period.time_zone)}"
        )
    if month := changed.cut_month:
        end = _time_text(month.ends_at, month.time_zone)
        name = f"{from_micros(month.starts_at).astimezone(time_zone(month.time_zone)):%Y-%m}"
        yield f"the month {name} is cut at {end}: usage lists its parts apart"


def _time_text(time: int, zone: str) -> str:
    return f"{from_micros(time).astimezone(time_zone(zone)):%Y-%m-%d %H:%M} {zone}"


def remove(name: RealmName) -> None:
    """Remove a realm that was set by mistake, and its rules.

    Only one of which nothing was ever reported: what has sessions, usage or
    periods stays, and a realm that tokens read or that has limits.
    """
    from accounting.front.shared.rules import remove_realm

    with writer_engine(command_settings()) as engine:
        remove_realm(engine, name)
    write_message(f"realm '{name}' is removed")


def _spans(rules: Sequence[RealmRule]) -> Iterator[tuple[str, RealmRule]]:
    """Rules in order, each with the time in which it holds, in words."""
    starts = ["" if rule.holds_from == TIME_MIN else _start_text(rule) for rule in rules]
    for rule, start, end in zip(rules, starts, [*starts[1:], ""], strict=True):
        match start, end:
            case "", "":
                yield "always", rule
            case _, "":
                yield f"from {start} on", rule
            case "", _:
                yield f"until {end}", rule
            case _:
                yield f"from {start} until {end}", rule


def _start_text(rule: RealmRule) -> str:
    return exact_text(from_micros(rule.holds_from).astimezone(time_zone(rule.time_zone)))


def _in_words(rule: RealmRule) -> str:
    return (
        f"time zone {rule.time_zone}, billing periods from day {rule.anchor_day} of a month, "
        f"grace {rule.grace_seconds} s, usernames {rule.username_rule.value} "
        f"with separator '{rule.separator}'"
    )


def _parse_day(value: str) -> date:
    try:
        day = date.fromisoformat(value)
    except ValueError:
        raise UsageError(f"--from {value!r}: expected a day, YYYY-MM-DD") from None
    if not 1970 <= day.year < 9999:
        raise UsageError(f"--from {value!r}: expected a day since 1970")
    return day
