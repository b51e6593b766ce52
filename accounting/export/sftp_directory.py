"""Files of an export on an SFTP server: a draft under a name of its own, renamed when complete.

The rename replaces an earlier file at once where the server knows OpenSSH's ``posix-rename``, as
nearly all do; elsewhere the earlier file is removed first.
"""

import posixpath
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from accounting.export.place import Draft
from accounting.export.store_errors import require_library, silence_libraries, store_errors

_CHUNK_BYTES: Final = 1 << 20
_SECONDS_TO_CONNECT: Final = 30
_SECONDS_OF_SILENCE: Final = 60
ABANDONED_AFTER: Final = timedelta(days=1)
"""A draft is of a killed export if nothing was written to it for so long before another one."""


class SftpDirectory:
    """A :class:`~accounting.export.place.Place` on an SFTP server."""

    def __init__(self, url: str) -> None:
        """``url``: as ``sftp://user@host:port/directory``; ``/~/directory``: in the home."""
        self._url = url
        self._parts = urlsplit(url)
        path = self._parts.path
        self._root = path.removeprefix("/~/")
        self._connected: Any = None
        require_library("sftp", "sshfs")

    def location(self, name: str) -> str:
        return f"{self._url}/{name}"

    @contextmanager
    def draft(self, name: str) -> Iterator[Draft]:
        path = self._path(name)
        directory, base = posixpath.split(path)
        draft_path = posixpath.join(directory, f".{base}.{secrets.token_hex(8)}.draft")
        with store_errors(self.location(name), "written"):
            server = self._server()
            server.makedirs(directory or ".", exist_ok=True)
            file = server.open(draft_path, "wb")
        draft = _RemoteDraft(server, file, draft_path, path, self.location(name))
        try:
            yield draft
        finally:
            draft.drop()

    def chunks(self, name: str) -> Iterator[bytes]:
        with store_errors(self.location(name), "read"):
            file = self._server().open(self._path(name), "rb")
        with file:
            while True:
                with store_errors(self.location(name), "read"):
                    chunk: bytes = file.read(_CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk

    def remove(self, name: str) -> None:
        with store_errors(self.location(name), "removed"), suppress(FileNotFoundError):
            self._server().rm_file(self._path(name))

    def stamp(self, name: str) -> object:
        with store_errors(self.location(name), "written"):
            info = self._server().info(self._path(name))
        return info["size"], info["mtime"]

    def _path(self, name: str) -> str:
        return posixpath.join(self._root or "/", name)

    def _server(self) -> Any:
        """The connection, with the keys, known hosts and settings of ``~/.ssh``."""
        if self._connected is None:
            import sshfs  # noqa: PLC0415  # an extra

            silence_libraries()
            parts = self._parts
            options: dict[str, Any] = {
                name: value
                for name, value in (("port", parts.port), ("username", parts.username))
                if value is not None
            }
            with store_errors(self._url, "reached"):
                self._connected = sshfs.SSHFileSystem(
                    parts.hostname,
                    known_hosts=(),  # those of the user; sshfs would trust every host
                    password_auth=False,
                    kbdint_auth=False,
                    connect_timeout=_SECONDS_TO_CONNECT,
                    keepalive_interval=_SECONDS_OF_SILENCE / 4,
                    skip_instance_cache=True,
                    **options,
                )
        return self._connected


class _RemoteDraft:
    def __init__(self, server: Any, file: Any, draft: str, path: str, location: str) -> None:
        self._server = server
        self._file = file
        self._draft = draft
        self._path = path
        self._location = location
        self._is_published = False

    def write(self, data: bytes) -> int:
        with store_errors(self._location, "written"):
            written: int = self._file.write(data)
        return written

    def flush(self) -> None:
        """Leave it: writes are sent as they come."""

    def finish(self) -> None:
        from asyncssh import SFTPOpUnsupported  # noqa: PLC0415  # an extra

        with store_errors(self._location, "written"):
            with suppress(SFTPOpUnsupported):
                self._file.fsync()
            self._file.close()
            self._remove_abandoned_drafts()

    def publish(self) -> None:
        from fsspec.asyn import sync  # noqa: PLC0415  # an extra

        with store_errors(self._location, "written"):
            sync(self._server.loop, self._rename)
        self._is_published = True

    def drop(self) -> None:
        """Remove the draft unless it is published."""
        if self._is_published:
            return
        with suppress(Exception):  # the connection may be gone; a later export removes the draft
            self._file.close()
            self._server.rm_file(self._draft)

    async def _rename(self) -> None:
        """Rename the draft. Without posix-rename sshfs would copy it, by the server's shell."""
        from asyncssh import SFTPNoSuchFile, SFTPOpUnsupported  # noqa: PLC0415  # an extra

        async with self._server.client.start_sftp_client() as sftp:
            try:
                await sftp.posix_rename(self._draft, self._path)
            except SFTPOpUnsupported:
                with suppress(SFTPNoSuchFile):
                    await sftp.remove(self._path)
                await sftp.rename(self._draft, self._path)

    def _remove_abandoned_drafts(self) -> None:
        """Remove drafts of this file that killed exports left, by the server's clock."""
        directory, base = posixpath.split(self._path)
        written_at = self._server.info(self._draft)["mtime"]
        for info in self._server.ls(directory or "."):
            name = posixpath.basename(info["name"])
            if (
                name.startswith(f".{base}.")
                and name.endswith(".draft")
                and written_at - info["mtime"] > ABANDONED_AFTER
            ):
                with suppress(FileNotFoundError):
                    self._server.rm_file(info["name"])
