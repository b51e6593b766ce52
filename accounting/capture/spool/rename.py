"""Gives the spool of a renamed source the file of its new name."""

from contextlib import suppress
from pathlib import Path

from accounting.capture.spool.collector_lock import lock_spool
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from accounting.errors import SpoolError


def rename_spool(data_dir: Path, old_name: str, new_name: str) -> bool:
    """Rename a spool; False where there is none, or where the new name has captured already.

    It can be repeated after a crash at any point. Raises SpoolError while a collector uses it.
    """
    old_path, new_path = spool_path(data_dir, old_name), spool_path(data_dir, new_name)
    if not old_path.exists():
        return False
    with lock_spool(old_path), lock_spool(new_path):
        if new_path.exists():
            with Spool.open(new_path, new_name) as spool:
                if spool.state().captured_from is not None:
                    return False
            _remove(new_path)
        with _open_either(old_path, old_name, new_name) as spool:
            spool.set_source(new_name)
        if any(part.exists() for part in _side_files(old_path)):
            raise SpoolError(f"the spool {old_path} is in use: end the process that has it open")
        old_path.replace(new_path)
    return True


def _open_either(path: Path, old_name: str, new_name: str) -> Spool:
    """Open a spool that may have been renamed within, before a crash."""
    try:
        return Spool.open(path, old_name)
    except SpoolError:
        return Spool.open(path, new_name)


def _side_files(path: Path) -> list[Path]:
    """SQLite's write-ahead log and its index: gone when the last process has closed the file."""
    return [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm")]


def _remove(path: Path) -> None:
    for part in (path, *_side_files(path)):
        with suppress(FileNotFoundError):
            part.unlink()
