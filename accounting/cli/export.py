"""The commands ``export usage|sessions|statements|adjustments|focus|reports|check``."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from accounting.cli.arguments import (
    By,
    Per,
    PeriodOption,
    Realm,
    Since,
    Until,
)
from accounting.cli.output import BinaryOutput, write, write_message
from accounting.cli.progress import progress_line
from accounting.cli.resources import cell_engine, command_settings, open_reader
from accounting.domain.calendar import BucketLength
from accounting.errors import UsageError
from accounting.export.selection import ExportFormat, ExportKind, Selection
from accounting.plurals import counted
from accounting.progress import no_progress
from accounting.reporting import view_queries, view_query
from accounting.reporting.completeness import no_bucket_begins
from accounting.reporting.filters import bucket_length, exported_subject, time_span

FormatOption = Annotated[
    ExportFormat, typer.Option("--format", metavar="csv|jsonl|parquet", help="Format of the rows.")
]
Output = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        help="Directory for the file and its manifest, or s3://, gs://, az://, sftp://; - for "
        "stdout.",
    ),
]
Partitioned = Annotated[
    bool,
    typer.Option(
        "--partition", help="Parquet as a table of files, one for each realm= and period=."
    ),
]
_HELP: Final = {
    ExportKind.SESSIONS: "Export sessions that ended in the period or span: each in one export.",
    ExportKind.STATEMENTS: "Export statements of the period, or of periods that begin in the span.",
    ExportKind.ADJUSTMENTS: "Export adjustments billed with the period, or posted in the span.",
}


def register(app: typer.Typer) -> None:
    """Add the group ``export``."""
    group = typer.Typer(
        help=(
            "Export usage, sessions, statements, adjustments, FOCUS, reports. "
            "Exit 3: not complete yet. "
            "Without --until or --period: what there is so far."
        ),
        no_args_is_help=True,
    )
    group.command(ExportKind.USAGE)(export_usage)
    for kind, help_text in _HELP.items():
        group.command(kind, help=help_text)(_export_command(kind))
    group.command(ExportKind.FOCUS)(export_focus)
    group.command("reports")(export_reports)
    group.command("check")(check)
    app.add_typer(group, name="export")


def export_usage(
    realm: Realm = None,
    period: PeriodOption = None,
    since: Since = None,
    until: Until = None,
    by: By = "user",
    per: Per = "day",
    format_: FormatOption = ExportFormat.CSV,
    output: Output = "-",
    partition: Partitioned = False,
) -> None:
    """Export the usage of the buckets that start in the period or span; UTC by default."""
    subject, length = exported_subject(by), bucket_length(per)
    if length == "month" and (period is not None or partition):
        raise UsageError("--per month: a period need not be a month: see `export statements`")
    selection = _selection(
        ExportKind.USAGE,
        realm,
        period,
        since,
        until,
        subject=subject,
        granularity=length,
        is_partitioned=partition,
    )
    _export(selection, since, until, format_, output)


def _export_command(kind: ExportKind) -> Callable[..., None]:
    """The command of a kind that has no options of its own."""

    def export(
        realm: Realm = None,
        period: PeriodOption = None,
        since: Since = None,
        until: Until = None,
        format_: FormatOption = ExportFormat.CSV,
        output: Output = "-",
        partition: Partitioned = False,
    ) -> None:
        selection = _selection(kind, realm, period, since, until, is_partitioned=partition)
        _export(selection, since, until, format_, output)

    return export


def export_focus(
    realm: Realm = None,
    period: PeriodOption = None,
    since: Since = None,
    until: Until = None,
    price_per_gb: Annotated[
        str | None,
        typer.Option(
            metavar="DECIMAL", help="Price of 10^9 bytes, received or sent; without it costs are 0."
        ),
    ] = None,
    currency: Annotated[
        str | None, typer.Option(metavar="CODE", help="Currency of the price, such as EUR.")
    ] = None,
    provider: Annotated[
        str | None, typer.Option(metavar="NAME", help="ProviderName; the realm by default.")
    ] = None,
    publisher: Annotated[
        str | None, typer.Option(metavar="NAME", help="PublisherName; the provider by default.")
    ] = None,
    invoice_issuer: Annotated[
        str | None, typer.Option(metavar="NAME", help="InvoiceIssuerName; the provider by default.")
    ] = None,
    format_: FormatOption = ExportFormat.CSV,
    output: Output = "-",
) -> None:
    """Export charges of closed periods in FOCUS 1.2: statement lines, adjustments as corrections.

    A period's file has its statement, and the adjustments billed with it.
    """
    from accounting.export.focus_terms import focus_terms

    terms = focus_terms(price_per_gb, currency, provider, publisher, invoice_issuer)
    selection = _selection(ExportKind.FOCUS, realm, period, since, until, focus=terms)
    _export(selection, since, until, format_, output)


def _day(value: str) -> date:
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise UsageError(f"--day {value!r}: expected YYYY-MM-DD, such as 2026-11-22") from None


def export_reports(
    day: Annotated[
        date, typer.Option("--day", parser=_day, help="The day (UTC) of receipt, YYYY-MM-DD.")
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", help="Directory for the archive, or s3://, gs://, az://, sftp://."
        ),
    ],
) -> None:
    """Archive the reports of a day as Parquet, and read them back; needs the writer's login.

    Keys in place of names, and no client addresses. Exit 3: a source may bring more of that day.
    """
    from accounting.archive.archive_manifest import archive_manifest_name
    from accounting.archive.write_archive import archive_day
    from accounting.export.place_address import is_url, open_place

    if output == "-":
        raise UsageError("an archive is several files: name a directory with --output")
    place = open_place(output)
    if not is_url(output):
        _check_directory(Path(output))
    with (
        cell_engine(command_settings()) as engine,
        progress_line("archiving") as progress,
    ):
        manifest = archive_day(engine, output, day, progress)
    if manifest is None:
        raise UsageError(f"the database has no reports of {day} (UTC)")
    for file in manifest.files:
        write(f"{place.location(file.name)}\n")
    write(f"{place.location(archive_manifest_name(day, manifest.part))}\n")
    if sys.stderr.isatty():
        write_message(f"{counted(manifest.reports, 'report')} archived and read back")


def check(
    manifests: Annotated[
        list[str], typer.Argument(help="Manifests beside exported files, as paths or URLs.")
    ],
) -> None:
    """Check exported files against their manifests; exit 1 when one differs."""
    from accounting.export.manifest import check_export

    problems = [problem for manifest in manifests for problem in check_export(manifest)]
    for problem in problems:
        write_message(problem)
    raise typer.Exit(1 if problems else 0)


def _selection(
    kind: ExportKind,
    realm: str | None,
    period: date | None,
    since: str | None,
    until: str | None,
    **others: Any,
) -> Selection:
    if period is not None and (since is not None or until is not None):
        raise UsageError("--period goes without --since and --until")
    return Selection(kind=kind, realm=realm, period=period, **others)


def _check_partition(
    selection: Selection, format_: ExportFormat, output: str, *, has_span: bool
) -> None:
    """Refuse what a table of partitions can't be."""
    if not selection.is_partitioned:
        return
    if format_ is not ExportFormat.PARQUET:
        raise UsageError(f"--partition writes Parquet, not {format_}: add --format parquet")
    if has_span:
        raise UsageError(
            "--partition writes whole periods, so that a later export replaces them: name one with"
            " --period, or leave --since and --until out for all"
        )
    if output == "-":
        raise UsageError("--partition writes several files: name a directory with --output")


def _check_directory(output: Path) -> None:
    """Refuse what would be a file: the names of files say what they contain."""
    is_named_as_file = output.suffix in {f".{format_}" for format_ in ExportFormat}
    try:
        if output.is_dir() or not (output.exists() or is_named_as_file):
            return
    except OSError:
        return  # the one that writes there says what is wrong
    redirection = f", or leave --output out and redirect: > {output}"
    raise UsageError(
        f"--output {str(output)!r}: expected a directory, for the file and its manifest"
        f"{redirection if is_named_as_file else ''}"
    )


def _export(
    selection: Selection, since: str | None, until: str | None, format_: ExportFormat, output: str
) -> None:
    from accounting.export.export import export_to_place, export_to_stream
    from accounting.export.place_address import is_url, open_place

    begin, end = time_span(since, until)
    _check_partition(selection, format_, output, has_span=begin is not None or end is not None)
    place = open_place(output)
    if output != "-" and not is_url(output):
        _check_directory(Path(output))
    settings = command_settings()
    # On a terminal the rows themselves show how far it is.
    is_shown = output == "-" and sys.stdout.isatty()
    with (
        open_reader(settings, leaves_out_cells=False) as reader,
        nullcontext(no_progress) if is_shown else progress_line("exporting") as progress,
    ):
        if begin is not None or end is not None:
            [clock] = reader.read_rows(view_queries.database_now())
            selection = replace(
                selection,
                since=None if begin is None else view_query.instant(begin, clock["now"]),
                until=None if end is None else view_query.instant(end, clock["now"]),
            )
            if selection.since and selection.until and selection.since >= selection.until:
                raise UsageError(f"--since {since} is not before --until {until}")
            if selection.kind is ExportKind.USAGE and (
                reason := no_bucket_begins(
                    reader,
                    selection.realm,
                    BucketLength(selection.granularity),
                    selection.since,
                    selection.until,
                )
            ):
                raise UsageError(f"there is nothing to export: {reason}")
        if output == "-":
            if format_ is ExportFormat.PARQUET and sys.stdout.isatty():
                raise UsageError("Parquet is binary: name a directory with --output, or a pipe")
            export_to_stream(reader, selection, format_, BinaryOutput(), progress)
        else:
            exported = export_to_place(reader, selection, format_, place, progress)
            for location in (*exported.locations, exported.manifest_location):
                write(f"{location}\n")
            if sys.stderr.isatty():
                files = exported.locations
                into = files[0] if len(files) == 1 else counted(len(files), "file")
                write_message(f"{counted(exported.rows, 'row')} in {into}")
    if not selection.has_end:
        write_message("incomplete: rows may be added or change, since the span has no --until")
