"""Runs ``collect`` on a machine whose clock is wrong: ``clocked_collector collect``.

The file ``clock`` in the data directory says by how many microseconds, and may change at any time.
The variable FIRST_ANSWER_TIMEOUT_SECONDS says how long it waits for a database that is away.
"""

import os
from pathlib import Path
from typing import Final

from accounting.capture.clock import CaptureClock, wall_clock
from accounting.cli.run import run_process
from accounting.config import load_settings
from accounting.logs import configure_logging
from accounting.ops import collector_process
from accounting.ops.fork_server import ProcessStarter, fork_server
from accounting.ops.service import run_collector_process
from accounting.ops.stop_signals import stop_on_signals
from tests.support.short_waits import CAPTURE, CORRECTED, SERVICE, shorten

MODULE: Final = "tests.support.clocked_collector"


def set_clock(data_dir: Path, error: int) -> None:
    """Set by how much the clock of the machine with that data directory is wrong."""
    data_dir.mkdir(parents=True, exist_ok=True)
    partial = data_dir / "clock.partial"
    partial.write_text(str(error))
    partial.rename(data_dir / "clock")


def main() -> None:
    shorten({**CAPTURE, **SERVICE, **CORRECTED})
    with fork_server(run_process) as starter:
        run(starter)


def run(starter: ProcessStarter) -> None:
    stop = stop_on_signals()
    if seconds := os.environ.get("FIRST_ANSWER_TIMEOUT_SECONDS"):
        collector_process.FIRST_ANSWER_TIMEOUT_SECONDS = float(seconds)  # type: ignore[misc]
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    error = settings.data_dir / "clock"
    clock = CaptureClock(wall=lambda: wall_clock() + int(error.read_text()))
    run_collector_process(settings, stop, starter, clock=clock)


if __name__ == "__main__":
    main()
