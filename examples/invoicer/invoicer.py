"""A billing worker: writes one invoice for each user of each closed period, exactly once.

    ACCOUNTING_DATABASE_URL=postgresql://billing@db/accounting python invoicer.py invoices/

It stores invoices in an SQLite file of its own, beside one text file for each invoice. It may be
killed at any point:

- the feed delivers each event at least once, always with the same ``event_id``;
- one transaction writes the invoices of an event and its ``event_id``, so the worker recognizes an
  event that is delivered again;
- a text file is written from the SQLite file alone, under another name, and renamed: writing it
  again gives the same file;
- the worker requests the next event when all of this is done; only then the feed moves its cursor.

The bill of a period is final when the period closes: its statement, and the adjustments that are
posted in it, which correct earlier periods. A line of usage bills what the books have of a period
less what was billed of it. So it also bills the right sum when the database of turn-accounting was
restored from a backup, and divides the usage differently between statement and adjustments, or
closes the period again with other figures: then the new event's invoices have the difference.
"""

import os
import signal
import sqlite3
import sys
from contextlib import closing
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from accounting.feed.client import Feed, FeedEvent

CONSUMER = "invoicer"
CENTS_PER_GIB = Decimal("4.5")

SCHEMA = """
CREATE TABLE IF NOT EXISTS handled (event_id TEXT PRIMARY KEY, seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS invoices (
    number INTEGER PRIMARY KEY,
    event_id TEXT NOT NULL, realm TEXT NOT NULL, period TEXT NOT NULL,
    user_key TEXT NOT NULL, user_id TEXT NOT NULL,
    UNIQUE (event_id, user_key)
);
CREATE TABLE IF NOT EXISTS lines (
    line TEXT PRIMARY KEY, number INTEGER NOT NULL REFERENCES invoices, corrected TEXT NOT NULL,
    is_usage INTEGER NOT NULL, description TEXT NOT NULL,
    bytes INTEGER NOT NULL, cents INTEGER NOT NULL
);
"""

# What is billed of this period's usage, and of the earlier ones that are corrected in this one.
USAGE = """
WITH affected AS (
    SELECT user_key, user_id, period FROM reporting.statements
    WHERE realm = %(realm)s AND period = %(period)s
    UNION
    SELECT user_key, user_id, period FROM reporting.adjustments
    WHERE realm = %(realm)s AND posted_in = %(period)s AND author = 'turn-accounting'
)
SELECT a.user_key::text, a.user_id, a.period::text AS corrected, sum(u.bytes)::bigint AS bytes
FROM affected a
CROSS JOIN LATERAL (
    SELECT received_bytes + sent_bytes AS bytes FROM reporting.statements
    WHERE realm = %(realm)s AND period = a.period AND user_key = a.user_key
    UNION ALL
    SELECT received_bytes + sent_bytes FROM reporting.adjustments
    WHERE realm = %(realm)s AND period = a.period AND user_key = a.user_key
        AND posted_in <= %(period)s AND author = 'turn-accounting'
) u
GROUP BY 1, 2, 3 ORDER BY 1, 3
"""
CORRECTIONS = """
SELECT adjustment_id::text AS line, user_key::text, user_id, period::text AS corrected, reason,
    received_bytes + sent_bytes AS bytes
FROM reporting.adjustments
WHERE realm = %(realm)s AND posted_in = %(period)s AND author <> 'turn-accounting'
ORDER BY 1
"""


def run(url: str, directory: Path, *, consumer: str = CONSUMER, follow: bool = True) -> None:
    """Handle the events after this consumer's cursor; with ``follow`` until SIGTERM."""
    directory.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(directory / "books.sqlite3")) as books, Feed(url) as feed:
        books.execute("PRAGMA synchronous = FULL")
        books.executescript(SCHEMA)
        if follow:
            signal.signal(signal.SIGTERM, lambda *_: feed.stop())
        for event in feed.consume(consumer, types=["period.closed"], follow=follow):
            handle(url, books, event)
            write_files(books, event, directory)


def handle(url: str, books: sqlite3.Connection, event: FeedEvent) -> None:
    """Write the invoices of one closed period, unless its event was handled before."""
    event_id = str(event.event_id)
    if books.execute("SELECT 1 FROM handled WHERE event_id = ?", [event_id]).fetchone():
        return
    realm, period = event.realm, event.payload["period"]
    with psycopg.connect(url, row_factory=dict_row) as accounting:
        usage = accounting.execute(USAGE, {"realm": realm, "period": period}).fetchall()
        corrections = accounting.execute(CORRECTIONS, {"realm": realm, "period": period}).fetchall()
    with books:  # one transaction
        for row in [*usage, *users_without_usage(books, event, usage)]:
            row["bytes"] -= billed_bytes(books, realm, row["corrected"], row["user_key"])
            row["line"] = f"{event_id} {row['corrected']} {row['user_key']}"
            word = "usage of" if row["corrected"] == period else "late usage of"
            if row["bytes"]:
                add_line(books, event, row, f"{word} {row['corrected']}", is_usage=True)
        for row in corrections:
            # Posted again after a restore, it has the id that it had.
            if not books.execute("SELECT 1 FROM lines WHERE line = ?", [row["line"]]).fetchone():
                words = f"correction of {row['corrected']}: {row['reason']}"
                add_line(books, event, row, words, is_usage=False)
        books.execute("INSERT INTO handled VALUES (?, ?)", [event_id, event.seq])


def billed_bytes(books: sqlite3.Connection, realm: str, corrected: str, user_key: str) -> int:
    """The usage of a period that was billed to a user so far, on whichever invoice."""
    (billed,) = books.execute(
        "SELECT coalesce(sum(bytes), 0) FROM lines JOIN invoices USING (number)"
        " WHERE realm = ? AND corrected = ? AND user_key = ? AND is_usage",
        [realm, corrected, user_key],
    ).fetchone()
    return int(billed)


def users_without_usage(
    books: sqlite3.Connection, event: FeedEvent, usage: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Those who were billed for this period when it was closed before, and have no usage now."""
    period = event.payload["period"]
    users = books.execute(
        "SELECT DISTINCT user_key, user_id FROM lines JOIN invoices USING (number)"
        " WHERE realm = ? AND corrected = ? AND is_usage",
        [event.realm, period],
    ).fetchall()
    known = {row["user_key"] for row in usage if row["corrected"] == period}
    return [
        {"user_key": key, "user_id": user_id, "corrected": period, "bytes": 0}
        for key, user_id in users
        if key not in known
    ]


def add_line(
    books: sqlite3.Connection,
    event: FeedEvent,
    row: dict[str, Any],
    description: str,
    *,
    is_usage: bool,
) -> None:
    """Write one line, and its invoice before the first line."""
    key = [str(event.event_id), row["user_key"]]
    books.execute(
        "INSERT INTO invoices (event_id, user_key, realm, period, user_id) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        [*key, event.realm, event.payload["period"], row["user_id"]],
    )
    (number,) = books.execute(
        "SELECT number FROM invoices WHERE event_id = ? AND user_key = ?", key
    ).fetchone()
    cents = (CENTS_PER_GIB * int(row["bytes"]) / 2**30).quantize(Decimal(1), ROUND_HALF_UP)
    books.execute(
        "INSERT INTO lines VALUES (?, ?, ?, ?, ?, ?, ?)",
        [row["line"], number, row["corrected"], is_usage, description, row["bytes"], int(cents)],
    )


def write_files(books: sqlite3.Connection, event: FeedEvent, directory: Path) -> None:
    """Write the text file of each invoice of a period."""
    invoices = books.execute(
        "SELECT number, user_id FROM invoices WHERE event_id = ? ORDER BY number",
        [str(event.event_id)],
    ).fetchall()
    for number, user_id in invoices:
        text = [f"Invoice {number:06d}", f"{user_id} in {event.realm}", ""]
        total = 0
        lines = books.execute(
            "SELECT description, bytes, cents FROM lines WHERE number = ?"
            " ORDER BY description, line",
            [number],
        )
        for description, count, cents in lines:
            text.append(f"{description:<60} {count:>16,} bytes {cents / 100:>10.2f}")
            total += cents
        text.append(f"{'total':<60} {'':>22} {total / 100:>10.2f}")
        draft, final = directory / ".draft", directory / f"{number:06d}.txt"
        with draft.open("w") as file:
            file.write("\n".join(text) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.rename(final)


if __name__ == "__main__":
    run(os.environ["ACCOUNTING_DATABASE_URL"], Path(sys.argv[1]))
