"""Servers and books that a service reaches which runs as another user."""

import stat
from collections.abc import Iterator

import pytest

from tests.support.books import Books
from tests.support.servers import PostgresServer, ValkeyServer


@pytest.fixture
def open_books(books: Books) -> Books:
    """Books at a socket that every user of this machine may connect to."""
    socket_directory = books.server.running.socket_dir
    (socket_directory / ".s.PGSQL.5432").chmod(0o777)
    for directory in (socket_directory, *socket_directory.parents):
        if directory.stat().st_uid in {0, socket_directory.stat().st_uid}:
            directory.chmod(directory.stat().st_mode | stat.S_IXGRP | stat.S_IXOTH)
        if directory == books.server.data_dir.parent:
            break
    return books


@pytest.fixture
def servers() -> Iterator[tuple[PostgresServer, ValkeyServer]]:
    options = {"unix_socket_permissions": "0777"}
    with PostgresServer(settings=options, fsync=True) as postgres, ValkeyServer() as valkey:
        socket_directory = postgres.running.socket_dir
        for directory in (socket_directory, *socket_directory.parents):
            directory.chmod(directory.stat().st_mode | 0o011)
            if directory == postgres.data_dir:
                break
        yield postgres, valkey
