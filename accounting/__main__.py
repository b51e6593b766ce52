"""Entry point of ``turn-accounting``, also ``python -m accounting``.

structlog imports rich where it is installed, for tracebacks that are not used here: a tenth of a
second and 4 MB. So there is no rich in this process. The garbage collector is off until the
command's module is imported: importing leaves no garbage.

Ctrl-C exits with 130 and prints nothing, from here on: also while modules are imported, when there
is nothing to clean up.
"""

import gc
import os
import signal
import sys
from types import FrameType
from typing import Final, NoReturn

INTERRUPTED: Final = 128 + signal.SIGINT
"""The exit code after Ctrl-C, as shells give it."""


def _exit_at_once(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


_INTERRUPTS: Final = signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""False in the background of a script: the shell has it ignored there."""
if _INTERRUPTS:
    signal.signal(signal.SIGINT, _exit_at_once)
gc.disable()

sys.modules["rich"] = None  # type: ignore[assignment]  # an import of it fails

from accounting.cli.main import main as run  # noqa: E402


def main() -> NoReturn:
    """Run the command line and exit."""
    try:
        if _INTERRUPTS:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
