"""Progress bars on standard error: displayed on a terminal, silent elsewhere (cron, pipes)."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from accounting.progress import Progress as ReportProgress
from accounting.progress import no_progress


@contextmanager
def progress_bar(description: str, unit: str) -> Iterator[ReportProgress]:
    """Show how many ``unit``s are done; the bar pulses while the total is unknown."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield no_progress
        return
    columns = (
        TextColumn(description),
        BarColumn(),
        TextColumn("{task.completed:>13,.0f} " + unit),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total=None, /: bar.update(task, completed=done, total=total)
