"""The command ``erase``: removes a person's names and addresses from the books."""

from typing import Annotated

import typer

from accounting.cli.arguments import name_argument
from accounting.cli.output import write_message
from accounting.cli.progress import progress_line
from accounting.cli.resources import command_settings, writer_engine
from accounting.domain.client_addresses import ClientAddresses
from accounting.errors import UsageError
from accounting.plurals import counted


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("erase")(erase_name)


def erase_name(
    realm: Annotated[str, typer.Argument(parser=name_argument, help="The realm.")],
    user: Annotated[str | None, typer.Argument(parser=name_argument, help="The user_id.")] = None,
    client_addresses: Annotated[
        bool,
        typer.Option(
            "--client-addresses",
            help="Without a user: reduce the stored addresses of the realm to what it keeps now.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be erased; change nothing.")
    ] = False,
) -> None:
    """Erase a person's names and addresses; all figures stay.

    The figures stay under a key that hides the name. With
    --client-addresses: reduce the addresses that the realm has stored of
    all its clients to what its rule, or the setting, keeps from now on.
    """
    from accounting.front.shared.erasure import erase
    from accounting.identities.erase import NOT_REACHED

    if client_addresses:
        if user is not None:
            raise UsageError("--client-addresses is of all clients of a realm: name no user")
        _reduce_addresses(realm, dry_run=dry_run)
        return
    if user is None:
        raise UsageError("whose names? expected REALM USER, or REALM --client-addresses")
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


def _reduce_addresses(realm: str, *, dry_run: bool) -> None:
    from accounting.front.shared.erasure import reduce_addresses

    settings = command_settings()
    setting = ClientAddresses(settings.client_addresses)
    with writer_engine(settings) as engine, progress_line("erasing") as progress:
        reduced = reduce_addresses(engine, realm, setting, dry_run=dry_run, progress=progress)
    done = "reduced to networks" if reduced.kept is ClientAddresses.NETWORK else "erased"
    write_message(
        f"{'would be ' if dry_run else ''}{done}: the client address of "
        f"{counted(reduced.sessions, 'session')} and {counted(reduced.reports, 'report')}; "
        f"{'would be ' if dry_run else ''}deleted: "
        f"{counted(reduced.rejected_messages, 'rejected message')}"
    )
