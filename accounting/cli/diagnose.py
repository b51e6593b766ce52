"""The commands that examine the service and change nothing: ``health``, ``doctor``, ``config``."""

from typing import TYPE_CHECKING, Final

import typer

from accounting.cli.arguments import JsonOption, list_options
from accounting.cli.output import flush_output, write, write_json, write_message
from accounting.cli.resources import command_settings
from accounting.cli.rows import ListForm, Listing, arranged, write_list
from accounting.cli.table import Column, Kind
from accounting.domain.human_text import visible

if TYPE_CHECKING:
    from accounting.ops.doctor import Finding

_CONFIG: Final = Listing(
    plain={"variable": "variable", "value": "value", "origin": "from"},
    columns=(
        Column(field="variable", heading="variable"),
        Column(field="from", heading="from", kind=Kind.NAME),
        Column(field="value", heading="value", kind=Kind.WORDS),
    ),
    rank="variable",
    empty="",
    fields={
        "from": lambda row: "environment" if row["origin"] == row["variable"] else row["origin"]
    },
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("health")(health)
    app.command("doctor")(doctor)
    app.command("config")(config)


def health() -> None:
    """Print problems, which exit 1, and warnings, which do not.

    A warning does not make this service fail: it is about a gap that ended, a
    clock, or a coturn. `gaps` and `doctor` say more.
    """
    from accounting.ops.monitoring.health import check_health

    result = check_health(command_settings())
    for message in result.problems:
        write_message(message)
    for message in result.warnings:
        write_message(f"warning: {message}")
    raise typer.Exit(1 if result.problems else 0)


def doctor(as_json: JsonOption = False) -> None:
    """Examine servers, spool, clocks and events; exit 1 on errors."""
    from accounting.ops import servers
    from accounting.ops.doctor import Level, examine

    settings = command_settings()
    servers.check_data_dir(settings.data_dir)
    has_errors = False
    for finding in examine(
        settings,
        redis_url=servers.running_redis_url(settings),
        database_url=servers.running_database_url(settings),
    ):
        has_errors |= finding.level is Level.ERROR
        if as_json:
            write_json(
                [
                    {
                        "level": finding.level,
                        "subject": finding.component,
                        "check": finding.check,
                        "seen": finding.observed,
                        "advice": finding.advice,
                    }
                ]
            )
        else:
            _write_finding(finding)
        flush_output()
    raise typer.Exit(1 if has_errors else 0)


def _write_finding(finding: "Finding") -> None:
    check = f"{finding.component}: {finding.check}"
    write(f"{finding.level:<7}  {visible(check):<24}  {visible(finding.observed)}\n")
    if finding.advice:
        write(f"{'':<7}  {'':<24}  -> {visible(finding.advice)}\n")


@list_options(lambda: _CONFIG)
def config(*, form: ListForm) -> None:
    """Print the settings in force and where each comes from.

    Secrets are masked.
    """
    from accounting.config import environment_variable

    settings = command_settings()
    origins = settings.origins()
    rows = [
        {"variable": environment_variable(name), "value": value, "origin": origins[name]}
        for name, value in settings.masked().items()
    ]
    arrangement = _CONFIG.arrangement(form)
    write_list(arranged(rows, arrangement), _CONFIG, form, arrangement)
