"""The check of this machine's spool: its file, its disk, and its backlog."""

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
from accounting.plurals import counted

COMPONENT: Final = "spool"
DISK_LOW_BYTES: Final = 10**9
MAX_BACKLOG_AGE_SECONDS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolFileFacts:
    """The owner and permissions of the spool's file."""

    path: Path
    mode: int
    owner_uid: int
    is_writable: bool


def probe_spool(snapshot: Snapshot) -> SpoolFileFacts | None:
    """Read the facts of the spool's file; None where there is no spool."""
    if snapshot.spool is None:
        return None
    path = snapshot.spool.path
    status = path.stat()
    return SpoolFileFacts(
        path=path,
        mode=stat.S_IMODE(status.st_mode),
        owner_uid=status.st_uid,
        is_writable=os.access(path, os.W_OK) and os.access(path.parent, os.W_OK),
    )


def check_spool(snapshot: Snapshot, file: SpoolFileFacts | None) -> Iterator[Finding]:
    """Check the spool of a snapshot."""
    if snapshot.spool_error is not None:
        reason, _, advice = snapshot.spool_error.rpartition("; ")
        yield error(COMPONENT, "file", reason or advice, advice)
        return
    if snapshot.spool is None or file is None:
        yield warning(
            COMPONENT,
            "file",
            f"source {snapshot.source!r} has none on this machine",
            "run `turn-accounting collect` (or `up`) here; if another machine collects it, run "
            "doctor there, or set ACCOUNTING_SOURCE and ACCOUNTING_DATA_DIR as they are there",
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
        yield ok(COMPONENT, "file", f"{file.path}, {format_bytes(snapshot.spool.size_bytes)}")
    if snapshot.disk_free_bytes is not None:
        yield _check_disk(snapshot.disk_free_bytes)
    yield _check_backlog(snapshot.spool.backlog, snapshot.taken_at)
    if snapshot.spool.state.unconfirmed_from is not None:
        yield warning(
            COMPONENT,
            "clock",
            "its newest times were not compared with the database's clock yet",
            "nothing is lost: they are loaded, and corrected where they are wrong, once the "
            "collector reaches Postgres",
        )


def _check_disk(free_bytes: int) -> Finding:
    observed = f"{format_bytes(free_bytes)} are free"
    advice = "make room: a full disk stops capture, and is a gap"
    if free_bytes < DISK_FULL_BYTES:
        return error(COMPONENT, "disk", observed, advice)
    if free_bytes < DISK_LOW_BYTES:
        return warning(COMPONENT, "disk", observed, advice)
    return ok(COMPONENT, "disk", observed)


def _check_backlog(backlog: Backlog, now: int) -> Finding:
    if backlog.oldest_at is None:
        return ok(COMPONENT, "backlog", "everything is loaded")
    at_least = "at least " if backlog.messages == BACKLOG_COUNT_LIMIT else ""
    age_seconds = (now - backlog.oldest_at) / SECOND
    observed = (
        f"{at_least}{counted(backlog.messages, 'message')} not loaded yet, "
        f"the first for {format_duration(age_seconds)}"
    )
    if age_seconds > MAX_BACKLOG_AGE_SECONDS:
        return warning(
            COMPONENT,
            "backlog",
            observed,
            "check Postgres and the collector's log; nothing is lost while the disk has room",
        )
    return ok(COMPONENT, "backlog", observed)
