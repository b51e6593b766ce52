"""Parameters of tests that cost much on each kind of server."""

from typing import Final

import pytest

from tests.support.servers import SERVER_CLASSES

EACH_SERVER_IN_LONG: Final = [
    SERVER_CLASSES[0],
    *(pytest.param(name, marks=pytest.mark.long) for name in SERVER_CLASSES[1:]),
]
"""Valkey in ``make test``, and the others in ``make long``."""
