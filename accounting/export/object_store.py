"""Files of an export in S3, Google Cloud Storage or Azure Blob Storage, by fsspec.

An object is uploaded in parts and exists once the last request completes it. An upload that is
given up is cancelled; what a killed process leaves is no object, and only the store's own rules
remove its parts (docs/exports.md).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from accounting.errors import ConfigurationError
from accounting.export.place import Draft
from accounting.export.store_errors import require_library, silence_libraries, store_errors

PART_BYTES: Final = 1 << 24
"""Of an upload: S3 takes 10,000 parts, so a file of 160 GB. A part is held in memory."""
_CHUNK_BYTES: Final = 1 << 20
_MODULES: Final = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
_CONTENT_STAMPS: Final = ("md5Hash", "ETag", "etag")
"""What :meth:`fsspec.AbstractFileSystem.info` calls the digest or version of an object."""


class ObjectStore:
    """A :class:`~accounting.export.place.Place` in an object store."""

    def __init__(self, url: str) -> None:
        """``url``: the bucket (Azure: the container), and a prefix of the objects' names."""
        self._url = url
        self._scheme, self._root = url.split("://", 1)
        self._connected: Any = None
        require_library(self._scheme, _MODULES[self._scheme])

    def location(self, name: str) -> str:
        return f"{self._url}/{name}"

    @contextmanager
    def draft(self, name: str) -> Iterator[Draft]:
        with store_errors(self.location(name), "written"):
            file = self._filesystem().open(self._path(name), "wb", block_size=PART_BYTES)
        draft = _Upload(file, self.location(name))
        try:
            yield draft
        finally:
            draft.cancel()

    def chunks(self, name: str) -> Iterator[bytes]:
        with store_errors(self.location(name), "read"):
            file = self._filesystem().open(self._path(name), "rb", block_size=_CHUNK_BYTES)
        with file:
            while True:
                with store_errors(self.location(name), "read"):
                    chunk: bytes = file.read(_CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk

    def remove(self, name: str) -> None:
        with store_errors(self.location(name), "removed"), suppress(FileNotFoundError):
            self._filesystem().rm_file(self._path(name))

    def stamp(self, name: str) -> object:
        with store_errors(self.location(name), "written"):
            info = self._filesystem().info(self._path(name))
        return next((info[key] for key in _CONTENT_STAMPS if info.get(key)), info["size"])

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _filesystem(self) -> Any:
        """The library's file system, with the credentials of its own files and variables."""
        if self._connected is None:
            silence_libraries()
            with store_errors(self._url, "reached"):
                self._connected = _connect(self._scheme)
        return self._connected


def _connect(scheme: str) -> Any:
    options = {"skip_instance_cache": True, "use_listings_cache": False}
    match scheme:
        case "s3":
            import s3fs  # noqa: PLC0415  # an extra

            return s3fs.S3FileSystem(**options)
        case "gs":
            # The other class of gcsfs asks for the kind of bucket by gRPC first.
            from gcsfs.core import GCSFileSystem  # noqa: PLC0415  # an extra

            return GCSFileSystem(**options)
        case "az":
            import adlfs  # noqa: PLC0415  # an extra

            names = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING")
            if not any(os.environ.get(name) for name in names):
                raise ConfigurationError(f"az:// needs an account: set {' or '.join(names)}")
            return adlfs.AzureBlobFileSystem(**options)
        case _:
            raise AssertionError(scheme)


class _Upload:
    """An fsspec file that is being written. Closing it is what completes the object."""

    def __init__(self, file: Any, location: str) -> None:
        self._file = file
        self._location = location

    def write(self, data: bytes) -> int:
        with store_errors(self._location, "written"):
            written: int = self._file.write(data)
        return written

    def flush(self) -> None:
        """Leave it: a part has a least size."""

    def finish(self) -> None:
        """Leave the last part: completing the object sends it."""

    def publish(self) -> None:
        with store_errors(self._location, "written"):
            self._file.close()

    def cancel(self) -> None:
        """Give up the upload unless it is complete."""
        if self._file.closed:
            return
        # Closed before anything else: the library would complete the object when it drops the file.
        self._file.closed = True
        with suppress(Exception):  # there is no object in any case
            self._file.discard()
