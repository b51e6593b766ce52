"""Runs ``collect`` on a machine whose clock is wrong: ``clocked_collector collect``.

The file ``clock`` in the data directory says by how many microseconds, and may change at any time.
"""

from accounting.capture.clock import CaptureClock, wall_clock
from accounting.config import load_settings
from accounting.logs import configure_logging
from accounting.ops.service import run_collector_process
from accounting.ops.stop_signals import stop_on_signals


def main() -> None:
    stop = stop_on_signals()
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    error = settings.data_dir / "clock"
    clock = CaptureClock(wall=lambda: wall_clock() + int(error.read_text()))
    run_collector_process(settings, stop, clock=clock)


if __name__ == "__main__":
    main()
