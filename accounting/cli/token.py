"""The commands for access over HTTP: ``token create|list|revoke``."""

import re
from typing import Annotated, Final

import typer

from accounting.cli.arguments import MAX_INTEGER, list_options, name_argument
from accounting.cli.output import flush_output, write, write_message
from accounting.cli.resources import command_settings, writer_engine
from accounting.cli.rows import ListForm, Listing, arranged, write_list
from accounting.cli.table import Column, Kind
from accounting.domain.human_text import minute
from accounting.errors import UsageError

MAX_DAYS: Final = 36_500
_DAYS: Final = re.compile(r"([0-9]{1,5})d")
_TOKENS: Final = Listing(
    plain={
        "number": "number",
        "state": "state",
        "label": "label",
        "realm": "realm",
        "user_id": "user_id",
        "user_key": "user_key",
        "created_at": "created",
        "expires_at": "expires",
        "revoked_at": "revoked",
        "last_used_at": "last used",
    },
    columns=(
        Column(field="number", heading="number", kind=Kind.COUNT),
        Column(field="state", heading="state"),
        Column(field="label", heading="label", kind=Kind.NAME, optional=True),
        Column(field="reads", heading="reads", kind=Kind.NAME),
        Column(field="user_id", heading="user_id", kind=Kind.NAME, optional=True),
        Column(field="expires_at", heading="expires (UTC)", text=minute),
        Column(field="last_used_at", heading="last used", text=minute),
        Column(field="created_at", heading="created", text=minute, rank=1),
    ),
    rank="number",
    empty="There are no tokens yet.",
    fields={"reads": lambda token: "all" if token["realm"] is None else token["realm"]},
)


def register(app: typer.Typer) -> None:
    """Add the group ``token``."""
    group = typer.Typer(
        help="Create, list and revoke tokens for the page and the API.", no_args_is_help=True
    )
    group.command("create")(create)
    group.command("list")(list_all)
    group.command("revoke")(revoke)
    app.add_typer(group, name="token")


def create(
    realm: Annotated[
        str | None,
        typer.Option("--realm", parser=name_argument, help="Reads only this realm."),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option("--user", parser=name_argument, help="Reads only this user_id of the realm."),
    ] = None,
    label: Annotated[
        str, typer.Option("--label", metavar="TEXT", help="What it is for; the log shows it.")
    ] = "",
    expires: Annotated[
        str, typer.Option("--expires", metavar="DAYS", help="After so many days, or never.")
    ] = "90d",
) -> None:
    """Create a token: it is printed once, and nothing else can show it again.

    Without options it reads everything. A realm must be known: `realm set`
    makes it so before its first usage.
    """
    from accounting.web.access import tokens

    days = _parse_days(expires)
    with writer_engine(command_settings()) as engine:
        token, row = tokens.create_token(engine, realm=realm, user=user, label=label, days=days)
    write(f"{token}\n")
    flush_output()
    reads = "everything" if realm is None else f"realm '{realm}'"
    if user is not None:
        reads = f"user '{user}' of {reads}"
    expires_at = row["expires_at"]
    until = "it does not expire" if expires_at is None else f"expires {minute(expires_at)} UTC"
    write_message(f"token {row['number']} reads {reads}; {until}; keep it, it is not shown again")


@list_options(lambda: _TOKENS)
def list_all(*, form: ListForm) -> None:
    """List the tokens: what each reads, and when it was last used."""
    from accounting.web.access import tokens

    arrangement = _TOKENS.arrangement(form)
    with writer_engine(command_settings()) as engine:
        rows = tokens.list_tokens(engine)
    has_rows = write_list(arranged(rows, arrangement), _TOKENS, form, arrangement)
    if not has_rows and not form.for_programs:
        write(f"{_TOKENS.empty}\n")


def revoke(
    number: Annotated[
        int, typer.Argument(min=1, max=MAX_INTEGER, help="Its number in `token list`.")
    ],
) -> None:
    """Revoke a token at once, with the browser sessions that were opened with it."""
    from accounting.web.access import tokens

    with writer_engine(command_settings()) as engine:
        revoked = tokens.revoke_token(engine, number)
    write_message(f"token {number} is {'revoked' if revoked else 'revoked already'}")


def _parse_days(text: str) -> int | None:
    if text == "never":
        return None
    match = _DAYS.fullmatch(text)
    days = 0 if match is None else int(match[1])
    if not 1 <= days <= MAX_DAYS:
        raise UsageError(f"--expires {text!r}: expected 1d to {MAX_DAYS}d, or never")
    return days
