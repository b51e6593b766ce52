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
from accounting.ops.doctor.findings import Finding, error, ok, size, warning
from accounting.ops.monitoring.health import NO_DISK_BYTES, SECOND, in_words
from accounting.ops.monitoring.snapshot import Watch

SUBJECT: Final = "spool"
LITTLE_DISK_BYTES: Final = 10**9
LONG_WAIT_SECONDS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """Whose the file is, and who may read and write it."""

    path: Path
    mode: int
    owner: int
    is_writable: bool


def probe_spool(watch: Watch) -> FileFacts | None:
    """Look at the file of the spool; None where there is none."""
    if watch.spool is None:
        return None
    found = watch.spool.path.stat()
    return FileFacts(
        path=watch.spool.path,
        mode=stat.S_IMODE(found.st_mode),
        owner=found.st_uid,
        is_writable=os.access(watch.spool.path, os.W_OK)
        and os.access(watch.spool.path.parent, os.W_OK),
    )


def judge_spool(watch: Watch, file: FileFacts | None) -> Iterator[Finding]:
    """Judge the spool that was seen."""
    if watch.spool_error is not None:
        reason, _, advice = watch.spool_error.rpartition("; ")
        yield error(SUBJECT, "file", reason or advice, advice)
        return
    if watch.spool is None or file is None:
        yield warning(
            SUBJECT,
            "file",
            f"source {watch.source!r} has none on this machine",
            "run `turn-accounting collect` (or `up`) here; if it collects elsewhere, run doctor "
            "there, or set ACCOUNTING_SOURCE and ACCOUNTING_DATA_DIR as it has them",
        )
        return
    if not file.is_writable:
        yield error(
            SUBJECT,
            "file",
            f"{file.path} can't be written by this user (it belongs to user id {file.owner})",
            "run the service and doctor as the same user",
        )
    elif file.mode & 0o077:
        yield warning(
            SUBJECT,
            "file",
            f"{file.path} has mode {file.mode:o}: others on this machine can read usernames",
            f"chmod 600 {file.path}",
        )
    else:
        yield ok(SUBJECT, "file", f"{file.path}, {size(watch.spool.size_bytes)}")
    if watch.disk_free_bytes is not None:
        yield _disk(watch.disk_free_bytes)
    yield _backlog(watch.spool.backlog, watch.at)


def _disk(free: int) -> Finding:
    seen, advice = f"{size(free)} are free", "make room: a full disk stops capture, and is a gap"
    if free < NO_DISK_BYTES:
        return error(SUBJECT, "disk", seen, advice)
    if free < LITTLE_DISK_BYTES:
        return warning(SUBJECT, "disk", seen, advice)
    return ok(SUBJECT, "disk", seen)


def _backlog(backlog: Backlog, now: int) -> Finding:
    if backlog.oldest_at is None:
        return ok(SUBJECT, "backlog", "everything is loaded")
    least = "at least " if backlog.messages == BACKLOG_COUNT_LIMIT else ""
    waits = (now - backlog.oldest_at) / SECOND
    seen = (
        f"{least}{backlog.messages:,} messages wait to be loaded, the first for {in_words(waits)}"
    )
    if waits > LONG_WAIT_SECONDS:
        return warning(
            SUBJECT,
            "backlog",
            seen,
            "look at Postgres and at the collector's log; nothing is lost while the disk has room",
        )
    return ok(SUBJECT, "backlog", seen)
