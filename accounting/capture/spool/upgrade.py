"""Takes over a spool of format 2 or 3, which have a row for each message.

The rows are converted to chunks when the file is opened, so many in a transaction. A process that
is killed meanwhile, or a second one that opens the file, continues where the first one stopped.
"""

import sqlite3
from itertools import groupby
from operator import itemgetter
from typing import Final

from accounting.capture.spool.chunks import CHUNK_MESSAGES, CHUNKS_SCHEMA, INSERT_CHUNK, encode

CONVERTIBLE: Final = (2, 3)

STEP_ROWS: Final = 10_000
"""Rows per transaction: about 50 ms."""

ADD_CLOCK: Final = (
    "ALTER TABLE spool ADD COLUMN boot TEXT",
    "ALTER TABLE spool ADD COLUMN clock_offset INTEGER",
    "ALTER TABLE spool ADD COLUMN unconfirmed_from INTEGER",
)
ADD_SERVER: Final = "ALTER TABLE epochs ADD COLUMN server TEXT NOT NULL DEFAULT ''"
RENAME_ROWS: Final = "ALTER TABLE messages RENAME TO message_rows"
"""So that a process of the former version fails, which would see no messages otherwise."""

NEXT_ROWS: Final = """
SELECT epoch, (database << 1) | estimated, position, received_at, channel, payload
FROM message_rows ORDER BY epoch, position LIMIT ?
"""


def begin(connection: sqlite3.Connection, version: int) -> None:
    """Change the tables, in the transaction that gives the file its new format."""
    run = connection.execute
    if version == 2:
        for statement in ADD_CLOCK:
            run(statement)
    if "server" not in {name for _, name, *_ in run("PRAGMA table_info(epochs)")}:
        run(ADD_SERVER)
    run(RENAME_ROWS)
    for statement in CHUNKS_SCHEMA:
        run(statement)


def is_complete(connection: sqlite3.Connection) -> bool:
    """Whether no row is left to convert."""
    rows = "SELECT 1 FROM sqlite_schema WHERE name = 'message_rows'"
    return connection.execute(rows).fetchone() is None


def convert_step(connection: sqlite3.Connection) -> None:
    """Convert the next rows, in a transaction. Nothing when another process was faster."""
    if is_complete(connection):
        return
    rows = connection.execute(NEXT_ROWS, (STEP_ROWS,)).fetchall()
    if not rows:
        connection.execute("DROP TABLE message_rows")
        return
    for epoch, group in groupby(rows, key=itemgetter(0)):
        messages = list(group)
        for begin_at in range(0, len(messages), CHUNK_MESSAGES):
            _, *columns = zip(*messages[begin_at : begin_at + CHUNK_MESSAGES], strict=True)
            chunks = encode(epoch, *columns)
            connection.executemany(INSERT_CHUNK, [chunk[1:] for chunk in chunks])
    last_epoch, _, last_position, *_ = rows[-1]
    connection.execute(
        "DELETE FROM message_rows WHERE (epoch, position) <= (?, ?)", (last_epoch, last_position)
    )
