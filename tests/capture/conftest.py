"""Servers for tests of capture: the wheel's Valkey and, where it is installed, Debian's Redis."""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.support.collectors import PROMPT_SYNC
from tests.support.sentinels import TlsRedisServer
from tests.support.servers import SERVER_CLASSES, RedisServer, ValkeyServer


@pytest.fixture(params=SERVER_CLASSES)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with request.param() as running:
        yield running


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """For rules that do not depend on the server."""
    with ValkeyServer() as running:
        yield running


@pytest.fixture(params=SERVER_CLASSES)
def master(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A master whose replicas get a snapshot at once."""
    with request.param(PROMPT_SYNC) as running:
        yield running


@pytest.fixture
def valkey_master() -> Iterator[ValkeyServer]:
    """For rules that do not depend on the server."""
    with ValkeyServer(PROMPT_SYNC) as running:
        yield running


@pytest.fixture
def tls_redis() -> Iterator[TlsRedisServer]:
    """Debian's Redis over TLS, which the wheel's Valkey is built without."""
    with TlsRedisServer() as running:
        yield running


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that need TLS where Redis or openssl is not installed; never in CI."""
    if os.environ.get("CI") or (RedisServer.is_installed() and shutil.which("openssl")):
        return
    left_out = [item for item in items if "tls_redis" in getattr(item, "fixturenames", ())]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
