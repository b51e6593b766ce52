"""The servers that capture is proved on: the wheel's Valkey; where installed, Debian's Redis."""

import os
from collections.abc import Iterator

import pytest

from tests.servers import RedisServer, ValkeyServer

# In CI Redis must be there: RedisServer fails when it is not.
kinds: list[type[RedisServer]] = [ValkeyServer]
if RedisServer.is_installed() or os.environ.get("CI"):
    kinds.append(RedisServer)


@pytest.fixture(params=kinds)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with request.param() as running:
        yield running


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """For rules that do not depend on the server's kind."""
    with ValkeyServer() as running:
        yield running
