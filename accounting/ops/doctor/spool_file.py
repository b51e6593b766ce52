"""The judgement on the spool of this machine: its file, its disk, and what waits in it.

Pure: facts in, findings out; `probe_spool` looks at the file.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from accounting.capture.spool.status import BACKLOG_COUNT_LIMIT, Backlog
from accounting.ops.doctor.findings import Finding, error, format_bytes, ok, warning
from accounting.ops.monitoring.health import DISK_FULL_BYTES, SECOND, format_duration
from accounting.ops.monitoring.snapshot import Snapshot

COMPONENT: Final = "spool"
DISK_LOW_BYTES: Final = 10**9
MAX_BACKLOG_AGE_SECONDS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolFileFacts:
    """Whose the file is, and who may read and write it."""

    path: Path
    mode: int
    owner_uid: int
    is_writable: bool


def probe_spool(watch: Snapshot) -> SpoolFileFacts | None:
    """Look at the file of the spool; None where there is none."""
    if watch.spool is None:
        return None
    found = watch.spool.path.stat()
    return SpoolFileFacts(
        path=watch.spool.path,
        mode=stat.S_IMODE(found.st_mode),
        owner_uid=found.st_uid,
        is_writable=os.access(watch.spool.path, os.W_OK)
        and os.access(watch.spool.path.parent, os.W_OK),
    )


def check_spool(watch: Snapshot, file: SpoolFileFacts | None) -> Iterator[Finding]:
    """Judge the spool that was seen."""
    if watch.spool_error is not None:
        reason, _, advice = watch.spool_error.rpartition("; ")
        yield error(COMPONENT, "file", reason or advice, advice)
        return
    if watch.spool is None or file is None:
        yield warning(
            COMPONENT,
            "file",
            f"source {watch.source!r} has none on this machine",
            "run `turn-accounting collect` (or `up`) here; if it collects elsewhere, run doctor "
            "there, or set ACCOUNTING_SOURCE and ACCOUNTING_DATA_DIR as it has them",
        )
        return
    if not file.is_writable:
        yield error(
            COMPONENT,
            "file",
            f"{file.path} can't be written by this user (it belongs to user id {file.owner_uid})",
            "run the service and doctor as the same user",
        )
    elif file.mode & 0o077:
        yield warning(
            COMPONENT,
            "file",
            f"{file.path} has mode {file.mode:o}: others on this machine can read usernames",
            f"chmod 600 {file.path}",
        )
    else:
        yield ok(COMPONENT, "file", f"{file.path}, {format_bytes(watch.spool.size_bytes)}")
    if watch.disk_free_bytes is not None:
        yield _disk(watch.disk_free_bytes)
    yield _backlog(watch.spool.backlog, watch.taken_at)


def _disk(free: int) -> Finding:
    seen, advice = (
        f"{format_bytes(free)} are free",
        "make room: a full disk stops capture, and is a gap",
    )
    if free < DISK_FULL_BYTES:
        return error(COMPONENT, "disk", seen, advice)
    if free < DISK_LOW_BYTES:
        return warning(COMPONENT, "disk", seen, advice)
    return ok(COMPONENT, "disk", seen)


def _backlog(backlog: Backlog, now: int) -> Finding:
    if backlog.oldest_at is None:
        return ok(COMPONENT, "backlog", "everything is loaded")
    least = "at least " if backlog.messages == BACKLOG_COUNT_LIMIT else ""
    waits = (now - backlog.oldest_at) / SECOND
    seen = (
        f"{least}{backlog.messages:,} messages wait to be loaded, the first for "
        f"{format_duration(waits)}"
    )
    if waits > MAX_BACKLOG_AGE_SECONDS:
        return warning(
            COMPONENT,
            "backlog",
            seen,
            "look at Postgres and at the collector's log; nothing is lost while the disk has room",
        )
    return ok(COMPONENT, "backlog", seen)
