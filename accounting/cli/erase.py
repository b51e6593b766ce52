"""The command ``erase``: removes a person's name from the books."""

from datetime import UTC, timedelta
from typing import Annotated

import typer

from accounting.cli.arguments import name_argument
from accounting.cli.output import write_message
from accounting.cli.resources import command_settings, writer_engine
from accounting.identities.erase import erase


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("erase")(erase_name)


def erase_name(
    realm: Annotated[str, typer.Argument(parser=name_argument, help="The realm.")],
    user: Annotated[str, typer.Argument(parser=name_argument, help="The user_id.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be erased; change nothing.")
    ] = False,
) -> None:
    """Erase a person's name; all figures stay, under a key that does not reveal it."""
    settings = command_settings()
    with writer_engine(settings) as engine:
        erased = erase(engine, realm, user, dry_run=dry_run)
    write_message(
        f"{'would erase' if dry_run else 'erased'} {erased.user_ids:,} user_id, "
        f"{erased.usernames:,} usernames and {erased.rejected_messages:,} rejected messages; "
        f"user_key {erased.user_key}"
    )
    pruned_at = erased.erased_at.astimezone(UTC) + timedelta(
        seconds=settings.spool_retention_seconds
    )
    write_message(
        "not reached: the spools of the collectors, which delete what is loaded by now at about "
        f"{pruned_at:%Y-%m-%d %H:%MZ}, if their retention is the one configured here; backups, "
        "exports, coturn's own logs and its keys in Redis"
    )
