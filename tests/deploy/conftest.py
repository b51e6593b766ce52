"""Books that a service reaches which runs as another user."""

import stat

import pytest

from tests.support.books import Books


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
