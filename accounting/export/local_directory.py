"""Files of an export in a directory of this machine: a draft that is synced, then renamed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from accounting.errors import AccountingError
from accounting.export.atomic_file import disk_errors, locked_draft, sync_directory, sync_file
from accounting.export.place import Draft

_CHUNK_BYTES: Final = 1 << 20


class LocalDirectory:
    """A :class:`~accounting.export.place.Place` on a local disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def location(self, name: str) -> str:
        return str(self._directory / name)

    @contextmanager
    def draft(self, name: str) -> Iterator[Draft]:
        path = self._directory / name
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked_draft(path) as (draft, file):
                yield _FileDraft(path, draft, file)

    def chunks(self, name: str) -> Iterator[bytes]:
        path = self._directory / name
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
        except FileNotFoundError:
            raise
        except OSError as error:
            raise AccountingError(f"{path}: can't be read: {error.strerror or error}") from error

    def remove(self, name: str) -> None:
        path = self._directory / name
        with disk_errors(path):
            path.unlink(missing_ok=True)
            if path.parent.exists():
                sync_directory(path.parent)

    def stamp(self, name: str) -> object:  # noqa: ARG002
        """The same always: a lock keeps another export away until the manifest is there."""
        return None


class _FileDraft:
    def __init__(self, path: Path, draft: Path, file: BinaryIO) -> None:
        self._path = path
        self._draft = draft
        self._file = file

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def finish(self) -> None:
        sync_file(self._file)

    def publish(self) -> None:
        self._draft.rename(self._path)
        sync_directory(self._path.parent)
