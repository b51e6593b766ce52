"""A billing worker: writes one invoice for each user of each closed period, exactly once.

    ACCOUNTING_DATABASE_URL=postgresql://billing@db/accounting python invoicer.py invoices/

With ``--once`` before the directory it ends when it has handled what there is.

It stores invoices in an SQLite file of its own, beside a text file and a page to print for each
invoice. It may be killed at any point:

- the feed delivers each event at least once, always with the same ``event_id``;
- one transaction writes the invoices of an event and its ``event_id``, so the worker recognizes an
  event that is delivered again;
- text and page are written from the SQLite file alone, under another name, and renamed: writing
  them again gives the same files;
- the worker requests the next event when all of this is done; only then the feed moves its cursor.

The bill of a period is final when the period closes: its statement, and the adjustments that are
posted in it, which correct earlier periods. A line of usage bills what the books have of a period
less what was billed of it. So it also bills the right sum when the database of turn-accounting was
restored from a backup, and divides the usage differently between statement and adjustments, or
closes the period again with other figures: then the new event's invoices have the difference.

The tariff has a free allowance for each user and period, and a price for each further tier. What is
billed later of a period, late usage or a correction, is priced at the tiers of that period: it goes
on where the user stood in it, up or down. Amounts are decimals, and cents are rounded where a tier
or a line ends, counted from the start of the period. So the sum of all lines of a user and period
is the price of all their bytes, rounded once, in whichever portions and order they were billed.
"""

import os
import signal
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from html import escape
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from accounting.feed.client import Feed, FeedEvent

CONSUMER = "invoicer"
CURRENCY = "EUR"
MB, GB = 10**6, 10**9


@dataclass(frozen=True)
class Tier:
    """Bytes of a user and period from ``start`` until the next tier, and their price."""

    start: int
    price_per_gb: Decimal


TARIFF = (
    Tier(0, Decimal(0)),  # the free allowance
    Tier(100 * MB, Decimal("0.40")),
    Tier(100 * GB, Decimal("0.30")),
    Tier(1000 * GB, Decimal("0.20")),
)

SCHEMA = """
CREATE TABLE IF NOT EXISTS handled (event_id TEXT PRIMARY KEY, seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS invoices (
    number INTEGER PRIMARY KEY,
    event_id TEXT NOT NULL, realm TEXT NOT NULL, period TEXT NOT NULL,
    user_key TEXT NOT NULL, user_id TEXT NOT NULL,
    UNIQUE (event_id, user_key)
);
CREATE TABLE IF NOT EXISTS lines (
    entry TEXT NOT NULL, tier INTEGER NOT NULL, number INTEGER NOT NULL REFERENCES invoices,
    corrected TEXT NOT NULL, is_usage INTEGER NOT NULL, description TEXT NOT NULL,
    bytes INTEGER NOT NULL, price_per_gb TEXT NOT NULL, cents INTEGER NOT NULL,
    PRIMARY KEY (entry, tier)
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
SELECT adjustment_id::text || ' ' || user_key::text AS entry, user_key::text, user_id,
    period::text AS corrected, reason,
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
            row["bytes"] -= billed_bytes(books, realm, row, usage_only=True)
            row["entry"] = f"{event_id} {row['corrected']} {row['user_key']}"
            word = "usage of" if row["corrected"] == period else "late usage of"
            add_lines(books, event, row, f"{word} {row['corrected']}", is_usage=True)
        for row in corrections:
            # Posted again after a restore, it has the id that it had.
            if not books.execute("SELECT 1 FROM lines WHERE entry = ?", [row["entry"]]).fetchone():
                words = f"correction of {row['corrected']}: {row['reason']}"
                add_lines(books, event, row, words, is_usage=False)
        books.execute("INSERT INTO handled VALUES (?, ?)", [event_id, event.seq])


def billed_bytes(
    books: sqlite3.Connection, realm: str, row: dict[str, Any], *, usage_only: bool
) -> int:
    """The bytes of a period that were billed to a user so far, on whichever invoice."""
    (billed,) = books.execute(
        "SELECT coalesce(sum(bytes), 0) FROM lines JOIN invoices USING (number)"
        " WHERE realm = ? AND corrected = ? AND user_key = ? AND is_usage >= ?",
        [realm, row["corrected"], row["user_key"], usage_only],
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


def cents_until(position: int) -> int:
    """The price of the first bytes of a period, rounded to cents."""
    price = Decimal(0)
    for tier, end in zip(TARIFF, [*TARIFF[1:], None], strict=True):
        until = position if end is None else min(position, end.start)
        price += tier.price_per_gb * max(until - tier.start, 0)
    return int((price * 100 / GB).quantize(Decimal(1), ROUND_HALF_UP))


def rate(before: int, after: int) -> Iterator[tuple[int, int, int]]:
    """Tier, bytes and cents of each part between two positions; negative where it goes down.

    A position below 0, after a credit of more than was used, is in the free tier.
    """
    low, high = sorted([before, after])
    sign = 1 if after > before else -1
    for number, tier in enumerate(TARIFF):
        start = low if number == 0 else max(low, tier.start)
        end = high if tier is TARIFF[-1] else min(high, TARIFF[number + 1].start)
        if start < end:
            yield number, sign * (end - start), sign * (cents_until(end) - cents_until(start))


def add_lines(
    books: sqlite3.Connection,
    event: FeedEvent,
    row: dict[str, Any],
    description: str,
    *,
    is_usage: bool,
) -> None:
    """Write a line for each tier, and their invoice before the first line."""
    before = billed_bytes(books, event.realm, row, usage_only=False)
    for tier, count, cents in rate(before, before + int(row["bytes"])):
        key = [str(event.event_id), row["user_key"]]
        books.execute(
            "INSERT INTO invoices (event_id, user_key, realm, period, user_id)"
            " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [*key, event.realm, event.payload["period"], row["user_id"]],
        )
        (number,) = books.execute(
            "SELECT number FROM invoices WHERE event_id = ? AND user_key = ?", key
        ).fetchone()
        corrected, price = row["corrected"], f"{TARIFF[tier].price_per_gb:f}"
        line = [row["entry"], tier, number, corrected, is_usage, description, count, price, cents]
        books.execute("INSERT INTO lines VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", line)


@dataclass(frozen=True)
class Line:
    """A line of an invoice, and what the invoice says of itself."""

    number: int
    realm: str
    period: str
    user_id: str
    description: str
    bytes: int
    price_per_gb: str
    cents: int


def write_files(books: sqlite3.Connection, event: FeedEvent, directory: Path) -> None:
    """Write the text and the page of each invoice of a period."""
    rows = books.execute(
        "SELECT number, realm, period, user_id, description, bytes, price_per_gb, cents"
        " FROM invoices JOIN lines USING (number) WHERE event_id = ?"
        " ORDER BY number, corrected DESC, is_usage DESC, entry, tier",
        [str(event.event_id)],
    )
    for number, lines in groupby((Line(*row) for row in rows), attrgetter("number")):
        invoice = list(lines)
        for form, content in (("txt", text_of(invoice)), ("html", page_of(invoice))):
            draft, final = directory / ".draft", directory / f"{number:06d}.{form}"
            with draft.open("w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(final)


def money(cents: int) -> str:
    """An amount with its cents."""
    return f"{Decimal(cents) / 100:,.2f}"


def gigabytes(count: int) -> str:
    """Bytes as GB, exact."""
    return f"{Decimal(count) / GB:,.9f} GB"


def text_of(lines: Sequence[Line]) -> str:
    """The invoice as text."""
    first = lines[0]
    text = [f"Invoice {first.number:06d}", f"{first.user_id} in {first.realm}", ""]
    for line in lines:
        price = f"{line.price_per_gb} {CURRENCY}/GB"
        amount = f"{gigabytes(line.bytes):>24} {price:>14} {money(line.cents):>12}"
        text.append(f"{line.description:<50} {amount}")
    total = money(sum(line.cents for line in lines))
    text.append(f"{'total ' + CURRENCY:<50} {total:>52}")
    return "\n".join(text) + "\n"


STYLE = """
body { font: 11pt/1.5 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; color: #111 }
table { width: 100%; border-collapse: collapse }
th, td { padding: .35rem .5rem; text-align: left; border-bottom: 1px solid #bbb }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td { overflow-wrap: anywhere }
tfoot td { font-weight: bold; border-bottom: 3px double }
@page { size: A4; margin: 20mm }
@media print { body { margin: 0; max-width: none } thead { display: table-header-group }
  tr { break-inside: avoid } }
"""


def page_of(lines: Sequence[Line]) -> str:
    """The invoice as a page that prints well; it loads nothing."""
    first = lines[0]
    rows = "".join(
        f"<tr><td>{escape(line.description)}</td>"
        f'<td class="number">{gigabytes(line.bytes)}</td>'
        f'<td class="number">{line.price_per_gb}</td>'
        f'<td class="number">{money(line.cents)}</td></tr>\n'
        for line in lines
    )
    total = money(sum(line.cents for line in lines))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Invoice {first.number:06d}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>Invoice {first.number:06d}</h1>\n"
        f"<p>{escape(first.user_id)} in {escape(first.realm)}, period {first.period}</p>\n"
        '<table><thead><tr><th>Item</th><th class="number">Quantity</th>'
        f'<th class="number">{CURRENCY} per GB</th><th class="number">{CURRENCY}</th></tr>'
        "</thead>\n"
        f"<tbody>\n{rows}</tbody>\n"
        f'<tfoot><tr><td colspan="3">Total {CURRENCY}</td><td class="number">{total}</td></tr>'
        "</tfoot></table>\n</body></html>\n"
    )


if __name__ == "__main__":
    *options, target = sys.argv[1:]
    run(os.environ["ACCOUNTING_DATABASE_URL"], Path(target), follow=options != ["--once"])
