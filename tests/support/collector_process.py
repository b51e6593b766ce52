"""Runs a collector as a process: ``collector_process DATA_DIR [MAX_FILE_BYTES]``.

Further settings come from the environment.
"""

import resource
import sys
from pathlib import Path

from accounting.capture.collector import run_collector
from accounting.config import load_settings
from accounting.errors import AccountingError
from accounting.ops.stop_signals import stop_on_signals
from tests.support.short_waits import CAPTURE, shorten


def main() -> None:
    stop = stop_on_signals()
    shorten(CAPTURE)
    if len(sys.argv) > 2:
        limit = int(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        run_collector(load_settings(data_dir=Path(sys.argv[1])), stop)
    except AccountingError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
