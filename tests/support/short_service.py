"""Runs ``turn-accounting`` with short waits: ``python -m tests.support.short_service up``."""

import accounting.__main__  # noqa: F401  # it imports the others without rich
from accounting.cli.main import main
from tests.support.short_waits import CAPTURE, SERVICE, shorten

if __name__ == "__main__":
    shorten({**CAPTURE, **SERVICE})
    main()
