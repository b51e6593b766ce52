"""The servers that capture is proved on: the wheel's Valkey; where installed, Debian's Redis."""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.support.collectors import TlsRedisServer
from tests.support.servers import RedisServer, ValkeyServer

# In CI Redis must be there: RedisServer fails when it is not.
SERVER_CLASSES: list[type[RedisServer]] = [ValkeyServer]
if RedisServer.is_installed() or os.environ.get("CI"):
    SERVER_CLASSES.append(RedisServer)


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long an idle connection is waited on before a tick, an end or another attempt."""
    monkeypatch.setattr("accounting.capture.redis.receiver.READ_TIMEOUT_SECONDS", 0.02)
    monkeypatch.setattr("accounting.capture.collector.MIN_RETRY_SECONDS", 0.02)


@pytest.fixture(params=SERVER_CLASSES)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with request.param() as running:
        yield running


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """For rules that do not depend on the server's kind."""
    with ValkeyServer() as running:
        yield running


@pytest.fixture
def tls_redis() -> Iterator[TlsRedisServer]:
    """Debian's Redis over TLS, which the wheel's Valkey is built without."""
    with TlsRedisServer() as running:
        yield running


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, and say so, what needs TLS on a machine that has no server for it; never in CI."""
    if os.environ.get("CI") or (RedisServer.is_installed() and shutil.which("openssl")):
        return
    left_out = [item for item in items if "tls_redis" in getattr(item, "fixturenames", ())]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
