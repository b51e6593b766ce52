"""The status of a spool, read from outside while the collector and the loader use it.

The file is opened read-only, and the cost does not grow with the size of the spool.
"""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from accounting.capture.clock import wall_clock
from accounting.capture.spool.file import spool_path, translate_errors
from accounting.capture.spool.records import Gap, SpoolState
from accounting.capture.spool.spool import Spool
from accounting.errors import SpoolError

BACKLOG_COUNT_LIMIT: Final = 200_000
"""Messages that are counted, which takes about 0.1 s; of more only the age of the oldest counts."""

_LAST_RECEIVED_AT: Final = """
SELECT coalesce(
    (SELECT last_received_at FROM chunks ORDER BY epoch DESC, last_position DESC LIMIT 1),
    nullif(pruned_received_at, 0)
) FROM spool
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The messages to be loaded, and their bytes; at most BACKLOG_COUNT_LIMIT are counted.

    ``oldest_at``: receipt of the first of them, microseconds; None for an empty backlog.
    """

    messages: int
    bytes: int
    oldest_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolStatus:
    """A spool at one moment. ``gap`` is the open one; ``size_bytes`` is its size on disk.

    ``newest_at``: receipt of the last message, microseconds; None when there never was one.
    """

    path: Path
    state: SpoolState
    gap: Gap | None
    backlog: Backlog
    newest_at: int | None
    size_bytes: int


def read_status(data_dir: Path, source: str) -> SpoolStatus | None:
    """The status of a source's spool; None when there is no file. Raises SpoolError."""
    path = spool_path(data_dir, source)
    try:
        if not path.exists():
            return None
    except OSError as error:
        raise SpoolError(
            f"can't read {path}: {error.strerror}; run this as the user of the service"
        ) from None
    with translate_errors(path, "read"):
        uri = f"file:{quote(str(path))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=2.0)) as connection:
            spool = Spool(path, source, connection, wall_clock)
            spool.check_format()
            state = spool.state()
            messages, size, oldest_at = spool.count_after(
                state.loaded_epoch, state.loaded_position, BACKLOG_COUNT_LIMIT
            )
            (newest_at,) = spool.fetch_one(_LAST_RECEIVED_AT)
            return SpoolStatus(
                path=path,
                state=state,
                gap=spool.current_gap(),
                backlog=Backlog(messages=messages, bytes=size, oldest_at=oldest_at),
                newest_at=newest_at,
                size_bytes=spool.size_bytes(),
            )
