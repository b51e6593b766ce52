"""``python -m accounting`` is ``turn-accounting``."""

from accounting.cli import main

main()
