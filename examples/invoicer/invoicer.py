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
posted in it, which correct earlier periods.
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
    realm TEXT NOT NULL, period TEXT NOT NULL, user_key TEXT NOT NULL, user_id TEXT NOT NULL,
    UNIQUE (realm, period, user_key)
);
CREATE TABLE IF NOT EXISTS lines (
    line TEXT PRIMARY KEY, number INTEGER NOT NULL REFERENCES invoices,
    description TEXT NOT NULL, bytes INTEGER NOT NULL, cents INTEGER NOT NULL
);
"""

BILLED_LINES = """
SELECT user_key::text, user_id, digest AS line, 'usage of ' || period AS description,
    received_bytes + sent_bytes AS bytes
FROM reporting.statements WHERE realm = %(realm)s AND period = %(period)s
UNION ALL
SELECT user_key::text, user_id, adjustment_id::text, 'correction of ' || period || ': ' || reason,
    received_bytes + sent_bytes
FROM reporting.adjustments WHERE realm = %(realm)s AND posted_in = %(period)s
ORDER BY 1, 4, 3
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
        rows = accounting.execute(BILLED_LINES, {"realm": realm, "period": period}).fetchall()
    with books:  # one transaction
        for row in rows:
            add_line(books, realm, period, row)
        books.execute("INSERT INTO handled VALUES (?, ?)", [event_id, event.seq])


def add_line(books: sqlite3.Connection, realm: str, period: str, row: dict[str, Any]) -> None:
    """Write one line, and its invoice before the first line."""
    key = [realm, period, row["user_key"]]
    books.execute(
        "INSERT INTO invoices (realm, period, user_key, user_id) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        [*key, row["user_id"]],
    )
    (number,) = books.execute(
        "SELECT number FROM invoices WHERE realm = ? AND period = ? AND user_key = ?", key
    ).fetchone()
    cents = (CENTS_PER_GIB * int(row["bytes"]) / 2**30).quantize(Decimal(1), ROUND_HALF_UP)
    books.execute(
        "INSERT INTO lines VALUES (?, ?, ?, ?, ?)",
        [row["line"], number, row["description"], int(row["bytes"]), int(cents)],
    )


def write_files(books: sqlite3.Connection, event: FeedEvent, directory: Path) -> None:
    """Write the text file of each invoice of a period."""
    invoices = books.execute(
        "SELECT number, user_id FROM invoices WHERE realm = ? AND period = ? ORDER BY number",
        [event.realm, event.payload["period"]],
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
