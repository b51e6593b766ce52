"""A glance at a spool from outside: for metrics, health and `doctor`, while others work with it.

Opens the file to read only, so that looking changes, creates and migrates nothing. Must cost the
same however much lies in the spool.
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

BACKLOG_COUNT_LIMIT: Final = 200_000
"""Messages that are counted, about 0.1 s worth; from there on the age of the oldest tells more."""

_BACKLOG: Final = """
SELECT count(*), coalesce(sum(size), 0), min(received_at) FROM (
    SELECT length(channel) + length(payload) AS size, received_at FROM messages
    WHERE (epoch, position) > (?, ?) ORDER BY epoch, position LIMIT ?
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What waits to be loaded: messages and their bytes, up to COUNTED_AT_MOST of them.

    ``oldest_at``: when the first of them was received, microseconds; None when nothing waits.
    """

    messages: int
    bytes: int
    oldest_at: int | None


_NEWEST: Final = """
SELECT coalesce(
    (SELECT received_at FROM messages ORDER BY epoch DESC, position DESC LIMIT 1),
    nullif(pruned_received_at, 0)
) FROM spool
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolStatus:
    """A spool at one moment. ``gap`` is the open one; ``size_bytes`` is what it takes on disk.

    ``newest_at``: when the last message was received, microseconds; None when none ever was.
    """

    path: Path
    state: SpoolState
    gap: Gap | None
    backlog: Backlog
    newest_at: int | None
    size_bytes: int


def read_status(data_dir: Path, source: str) -> SpoolStatus | None:
    """Look at the spool of a source; None where there is none. Raises SpoolError."""
    path = spool_path(data_dir, source)
    if not path.exists():
        return None
    with translate_errors(path, "read"):
        address = f"file:{quote(str(path))}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=2.0)) as connection:
            spool = Spool(path, source, connection, wall_clock)
            state = spool.state()
            place = state.loaded_epoch, state.loaded_position
            row = connection.execute(_BACKLOG, (*place, BACKLOG_COUNT_LIMIT)).fetchone()
            return SpoolStatus(
                path=path,
                state=state,
                gap=spool.current_gap(),
                backlog=Backlog(messages=row[0], bytes=row[1], oldest_at=row[2]),
                newest_at=connection.execute(_NEWEST).fetchone()[0],
                size_bytes=spool.size_bytes(),
            )
