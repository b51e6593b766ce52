"""Runs a collector as a process: ``collector_process DATA_DIR [MAX_FILE_BYTES]``.

Further settings come from the environment.
"""

import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from accounting.capture.collector import run_collector
from accounting.config import load_settings
from accounting.errors import AccountingError
from accounting.ops.stop_signals import stop_on_signals
from tests.support.short_waits import CAPTURE, shorten


def main(arguments: Sequence[str]) -> None:
    stop = stop_on_signals()
    shorten(CAPTURE)
    if len(arguments) > 1:
        limit = int(arguments[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        run_collector(load_settings(data_dir=Path(arguments[0])), stop)
    except AccountingError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run_forked(arguments: Sequence[str], environ: dict[str, str], output: Path) -> None:
    """Run it in this process, which the fork server has started for it."""
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environ)
    main(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
