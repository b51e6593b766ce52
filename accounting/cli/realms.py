"""The commands for the rules of realms: ``realm list|set``."""

import difflib
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Annotated
from zoneinfo import available_timezones

import typer

from accounting.cli.arguments import LARGEST_INTEGER, Json, RealmName, from_argument
from accounting.cli.terminal import warn
from accounting.cli.views import in_zone, write_rows
from accounting.config import Settings
from accounting.db import migrations
from accounting.domain.identity import UsernameRule
from accounting.errors import UsageError, unknown_name
from accounting.identities.realm_rules import list_rules, realm_names, set_rule
from accounting.ops import service


def mount(app: typer.Typer, settings: Callable[[], Settings]) -> None:
    """Add the commands, on settings that are read when they run."""
    realm = typer.Typer(help="The rules of realms.", no_args_is_help=True)
    app.add_typer(realm, name="realm")
    _mount_list(realm, settings)
    _mount_set(realm, settings)


def _mount_list(realm: typer.Typer, settings: Callable[[], Settings]) -> None:
    @realm.command("list")
    def realm_list(
        name: Annotated[
            str | None, typer.Argument(parser=from_argument, help="Only this realm.")
        ] = None,
        as_json: Json = False,
    ) -> None:
        """List the rules of realms, each with the time from which it holds."""
        with service.database(settings(), service.WRITER) as engine:
            migrations.require_head(engine)
            rows = list(list_rules(engine, name))
            if name is not None and not rows:
                raise unknown_name("realm", name, realm_names(engine))
        columns = {
            "realm": "realm",
            "holds_from": "from",
            "time_zone": "time zone",
            "anchor_day": "anchor day",
            "grace_seconds": "grace s",
            "username_rule": "usernames",
            "separator": "separator",
        }
        write_rows(rows, columns, as_json=as_json, empty="No realm is known yet.")


def _mount_set(realm: typer.Typer, settings: Callable[[], Settings]) -> None:
    @realm.command("set")
    def realm_set(
        name: RealmName,
        time_zone: Annotated[
            str | None, typer.Option("--time-zone", "--timezone", help="Such as Europe/Berlin.")
        ] = None,
        anchor_day: Annotated[
            int | None,
            typer.Option("--anchor-day", min=1, max=31, help="Day on which billing periods begin."),
        ] = None,
        grace: Annotated[
            int | None,
            typer.Option(
                "--grace-seconds",
                "--grace",
                min=0,
                max=LARGEST_INTEGER,
                help="Seconds past its lifetime until expiry.",
            ),
        ] = None,
        username_rule: Annotated[
            UsernameRule | None,
            typer.Option("--username-rule", help="How usernames name users; rest: TURN REST."),
        ] = None,
        separator: Annotated[
            str | None,
            typer.Option("--separator", help="Between time and user; ':' in coturn."),
        ] = None,
        holds_from: Annotated[
            str | None,
            typer.Option(
                "--from", help="Day from which it holds, YYYY-MM-DD, midnight in its zone."
            ),
        ] = None,
    ) -> None:
        """Set rules of a realm. What is not named stays."""
        chosen = settings()
        if time_zone is not None:
            _check_zone(time_zone)
        if separator is not None and not (separator and separator.isprintable()):
            raise UsageError(
                f"--separator {separator!r}: expected printable characters, such as ':'"
            )
        changes = {
            field: value
            for field, value in {
                "time_zone": time_zone,
                "anchor_day": anchor_day,
                "grace_seconds": grace,
                "username_rule": username_rule,
                "separator": separator,
            }.items()
            if value is not None
        }
        if not changes:
            raise UsageError("nothing to set: name at least one rule, such as --time-zone")
        with service.database(chosen, service.WRITER) as engine:
            migrations.require_head(engine)
            set_rule(
                engine,
                name,
                changes,
                default=service.default_rule(chosen),
                holds_from=None if holds_from is None else _day(holds_from),
                now=datetime.now(UTC),
            )
            rows = [in_zone(row) for row in list_rules(engine, name)]
        for row in rows:
            since = row["holds_from"]
            warn(f"realm '{name}': {row['time_zone']} from {since or 'the beginning'}")


def _day(value: str) -> date:
    try:
        day = date.fromisoformat(value)
    except ValueError:
        raise UsageError(f"{value!r} is no day: expected YYYY-MM-DD") from None
    if not 1970 <= day.year < 9999:
        raise UsageError(f"{value!r} is no day of an account: expected one since 1970")
    return day


def _check_zone(name: str) -> None:
    if name not in available_timezones():
        near = difflib.get_close_matches(name, available_timezones(), n=1)
        raise UsageError(
            f"--time-zone {name!r} is not known: "
            f"expected a name such as {near[0] if near else 'Europe/Berlin'}"
        )
