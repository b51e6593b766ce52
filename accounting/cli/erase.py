"""The command ``erase``: removes a person's names and addresses from the books."""

from typing import Annotated

import typer

from accounting.cli.arguments import name_argument
from accounting.cli.output import write_message
from accounting.cli.progress import progress_line
from accounting.cli.resources import command_settings, writer_engine
from accounting.plurals import counted


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
    """Erase a person's names and addresses; all figures stay.

    The figures stay under a key that hides the name.
    """
    from accounting.identities.erase import NOT_REACHED, erase

    settings = command_settings()
    with writer_engine(settings) as engine, progress_line("erasing") as progress:
        erased = erase(engine, realm, user, dry_run=dry_run, progress=progress)
    write_message(
        f"{'would erase' if dry_run else 'erased'} {counted(erased.user_ids, 'user_id')}, "
        f"{counted(erased.usernames, 'username')}, the client address of "
        f"{counted(erased.sessions, 'session')} and {counted(erased.reports, 'report')}, and "
        f"{counted(erased.rejected_messages, 'rejected message')}; "
        f"user_key {erased.user_key}"
    )
    write_message(f"not reached:\n{NOT_REACHED.rstrip()}")
