"""``export focus``: charges of closed periods by the rules of FOCUS 1.2, in exact decimals."""

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet
import pytest

from accounting.billing.adjust import adjust
from accounting.billing.close_period import close_periods
from accounting.export.export import export_to_directory, export_to_stream
from accounting.export.focus_terms import FocusTerms
from accounting.export.selection import ExportFormat, ExportKind, Selection
from accounting.identities.erase import erase
from tests.support.billing_scenarios import (
    DAY,
    DECEMBER,
    NOVEMBER,
    close_november_without_late_source,
    credit_test_call,
    receive_late_source,
)
from tests.support.books import READER, Books
from tests.support.command import turn_accounting
from tests.support.coturn_messages import FakeAllocation
from tests.support.focus_rules import column_rules, problems

PRICED: Final = FocusTerms(price_per_gb=Decimal("0.045000001"), currency="EUR")
COST_COLUMNS: Final = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost")


def close_two_months(books: Books) -> None:
    """November without a source; December with its late usage, a credit, and alice's usage."""
    close_november_without_late_source(books)
    receive_late_source(books)
    books.run_jobs()
    assert adjust(books.engine) == 2
    credit_test_call(books)
    alice = FakeAllocation(books, allocation=9)
    alice.new(31 * DAY)
    alice.close(31 * DAY + 100, (1, 7_000_000_001, 1, 2), (0, 0, 0, 0))
    for source in ("default", "late"):
        books.advance_clock(62 * DAY, source=source)
    books.run_jobs()
    assert close_periods(books.engine) == 1


def focus_file(
    books: Books, terms: FocusTerms | None = None, **selected: Any
) -> tuple[list[str], list[dict[str, str | None]]]:
    """The columns and rows of a CSV export; null is None."""
    out = io.BytesIO()
    selection = Selection(kind=ExportKind.FOCUS, focus=terms, **selected)
    export_to_stream(books.reader, selection, ExportFormat.CSV, out)
    reader = csv.DictReader(io.StringIO(out.getvalue().decode(), newline=""))
    rows = [{name: value or None for name, value in row.items()} for row in reader]
    return list(reader.fieldnames or ()), rows


def test_a_charge_has_the_columns_of_the_specification(books: Books) -> None:
    close_two_months(books)
    [line] = books.rows("statements WHERE user_id = 'alice' AND period = '2026-12-01'")
    _, rows = focus_file(books, PRICED, period=DECEMBER)
    assert [row for row in rows if row["ChargeClass"] is None] == [
        {
            **dict.fromkeys(COST_COLUMNS, "0.315000007135000003"),
            **dict.fromkeys(("ContractedUnitPrice", "ListUnitPrice"), "0.045000001"),
            **dict.fromkeys(("ConsumedQuantity", "PricingQuantity"), "7.000000003"),
            **dict.fromkeys(("ConsumedUnit", "PricingUnit"), "GB"),
            **dict.fromkeys(("ProviderName", "PublisherName", "InvoiceIssuerName"), "example.org"),
            **dict.fromkeys(("BillingPeriodStart", "ChargePeriodStart"), "2026-12-01T00:00:00Z"),
            **dict.fromkeys(("BillingPeriodEnd", "ChargePeriodEnd"), "2027-01-01T00:00:00Z"),
            **dict.fromkeys(("SkuId", "SkuPriceId"), "turn-relay-traffic"),
            "BillingAccountId": str(line["user_key"]),
            "BillingAccountName": "alice",
            "BillingCurrency": "EUR",
            "ChargeCategory": "Usage",
            "ChargeClass": None,
            "ChargeDescription": (
                "TURN relay traffic in the period 2026-12-01, at 0.045000001 EUR per GB"
            ),
            "ChargeFrequency": "Usage-Based",
            "InvoiceId": None,
            "PricingCategory": "Standard",
            "ServiceCategory": "Networking",
            "ServiceName": "TURN relay",
            "ServiceSubcategory": "Network Connectivity",
            "SkuMeter": "Relayed traffic",
            "x_AdjustmentId": None,
            "x_CorrectedPeriod": None,
            "x_Period": "2026-12-01",
            "x_Realm": "example.org",
            "x_ReceivedBytes": "7000000001",
            "x_SentBytes": "2",
        }
    ]


def test_an_adjustment_is_a_correction_that_names_its_period(books: Books) -> None:
    close_two_months(books)
    _, rows = focus_file(books, PRICED, period=DECEMBER)
    named = (
        "BillingAccountName", "ChargeClass", "x_CorrectedPeriod", "ChargePeriodStart",
        "ChargePeriodEnd", "BillingPeriodStart", "ConsumedQuantity", "BilledCost",
    )  # fmt: skip
    november = ("2026-11-01", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z")
    december = "2026-12-01T00:00:00Z"
    corrections = [row for row in rows if row["ChargeClass"] is not None]
    assert sorted(tuple(row[name] for name in named) for row in corrections) == [
        ("bob", "Correction", *november, december, "-0.0000006", "-0.0000000270000006"),
        ("bob", "Correction", *november, december, "0.0000015", "0.0000000675000015"),
        ("carol", "Correction", *november, december, "0.00000001", "0.00000000045000001"),
    ]
    assert {row["x_AdjustmentId"] for row in corrections} == {
        str(row["adjustment_id"]) for row in books.rows("adjustments")
    }
    assert {str(row["ChargeDescription"]).split(", ")[1] for row in corrections} == {
        "late usage",
        "a test call",
    }
    assert [row["ChargeClass"] for row in focus_file(books, period=NOVEMBER)[1]] == [None] * 2


@pytest.mark.parametrize("terms", [None, PRICED], ids=["without a price", "priced"])
def test_a_file_keeps_the_rules_of_the_specification(
    books: Books, terms: FocusTerms | None
) -> None:
    close_two_months(books)
    erase(books.engine, "example.org", "alice")
    names, rows = focus_file(books, terms)
    assert len(rows) == 6
    assert problems(names, rows) == []
    assert [name for name in names if not name.startswith("x_")] == sorted(column_rules())
    charges = [row for row in rows if row["ChargeClass"] is None]
    corrections = [row for row in rows if row["ChargeClass"] is not None]
    if terms is None:
        # Null where the specification allows it, otherwise 0.
        assert {row[name] for row in rows for name in COST_COLUMNS} == {"0.0"}
        assert {row["ListUnitPrice"] for row in charges} == {"0.0"}
        assert {row["ContractedUnitPrice"] for row in corrections} == {None}


def test_the_rules_find_what_breaks_them(november_books: Books) -> None:
    """Each column's own: a null where none may be, a wrong format, a wrong sum, a wrong order."""
    names, rows = focus_file(november_books, PRICED)
    assert problems(names, rows) == []
    for name, rule in column_rules().items():
        if rule.presence == "mandatory":
            assert problems([other for other in names if other != name], rows)
        if rule.null != "may":
            assert f"row 0: {name} is null" in problems(names, [{**rows[0], name: None}])
        if rule.kind != "string":
            assert problems(names, [{**rows[0], name: "1,5 x"}])
        assert problems(names, [{**rows[0], name: ""}])
    for name in ("ListCost", "ContractedUnitPrice", "PricingQuantity"):
        assert problems(names, [{**rows[0], name: "12"}])
    for name in ("ChargeClass", "ChargeCategory", "PricingCategory", "ServiceSubcategory"):
        assert problems(names, [{**rows[0], name: "Else"}])
    assert problems(names, [{**rows[0], "ChargeClass": "Correction"}])
    assert problems(names, [{**rows[0], "ChargePeriodEnd": "2026-11-01T00:00:00Z"}])
    assert problems(["x_Own", *names], rows)
    assert problems([*names, "Own"], rows)


@pytest.mark.parametrize("format_", [ExportFormat.CSV, ExportFormat.PARQUET])
def test_the_file_and_its_manifest_have_the_sums_of_statements_and_adjustments(
    books: Books, tmp_path: Path, format_: ExportFormat
) -> None:
    close_two_months(books)
    selection = Selection(kind=ExportKind.FOCUS, focus=PRICED)
    exported = export_to_directory(books.reader, selection, format_, tmp_path)
    manifest = json.loads(exported.manifest_path.read_text())
    statements, adjustments = books.rows("statements"), books.rows("adjustments")
    billed = sum(row["received_bytes"] + row["sent_bytes"] for row in (*statements, *adjustments))
    gigabytes = Decimal(billed) / 10**9
    assert manifest["rows"] == len(statements) + len(adjustments)
    sums = manifest["sums"]
    assert Decimal(sums["PricingQuantity"]) == Decimal(sums["ConsumedQuantity"]) == gigabytes
    assert {Decimal(sums[name]) for name in COST_COLUMNS} == {gigabytes * Decimal("0.045000001")}
    assert sums["x_ReceivedBytes"] + sums["x_SentBytes"] == billed
    assert "ListUnitPrice" not in sums
    focus = manifest["focus"]
    assert (focus["FocusVersion"], focus["price_per_gb"]) == ("1.2", "0.045000001")
    names, rows = focus_file(books, PRICED)
    assert [column["ColumnName"] for column in focus["ColumnDefinition"]] == names
    if format_ is ExportFormat.PARQUET:
        table = pyarrow.parquet.read_table(exported.path)
        values = table.to_pylist()
        assert [row["BilledCost"] for row in values] == [
            Decimal(str(row["BilledCost"])) for row in rows
        ]
        assert {row["BillingPeriodStart"] for row in values} == {
            datetime(2026, 11, 1, tzinfo=UTC),
            datetime(2026, 12, 1, tzinfo=UTC),
        }
        assert table.column_names == names


def test_what_is_billed_with_an_open_period_waits_for_its_close(books: Books) -> None:
    close_november_without_late_source(books)
    before = focus_file(books)
    receive_late_source(books)
    books.run_jobs()
    assert adjust(books.engine) == 2
    assert focus_file(books) == before
    assert len(before[1]) == 2


def test_a_span_has_the_periods_that_begin_in_it(books: Books) -> None:
    """With what is billed with them, whichever period it corrects; other realms have none."""
    close_two_months(books)
    first, second = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
    end = datetime(2027, 1, 1, tzinfo=UTC)
    for since, until, period in ((first, second, NOVEMBER), (second, end, DECEMBER)):
        assert focus_file(books, since=since, until=until) == focus_file(books, period=period)
    assert len(focus_file(books, realm="example.org", since=second, until=end)[1]) == 4
    nameless = FakeAllocation(books, user="", realm="", allocation=77)
    nameless.new(62 * DAY + 1)
    nameless.close(62 * DAY + 9, (1, 1, 1, 1), (0, 0, 0, 0))
    books.advance_clock(95 * DAY)
    books.advance_clock(95 * DAY, source="late")
    books.run_jobs()
    close_periods(books.engine)
    names, [row] = focus_file(books, realm="")
    assert problems(names, [row]) == []
    assert (row["ProviderName"], row["BillingAccountName"]) == ("TURN service", None)


def test_the_command_takes_the_names_and_the_price(november_books: Books) -> None:
    result = turn_accounting(
        "export", "focus", "--period", "2026-11-01", "--price-per-gb", "1000", "--currency", "CHF",
        "--provider", "Relays Ltd", "--publisher", "P", "--invoice-issuer", "I",
        database_url=november_books.url(READER),
    )  # fmt: skip
    assert (result.code, result.err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(result.out)))
    columns = ("ProviderName", "PublisherName", "InvoiceIssuerName", "BilledCost")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("Relays Ltd", "P", "I", "0.0003"),
        ("Relays Ltd", "P", "I", "0.0011"),
    ]
    waits = turn_accounting(
        "export", "focus", "--period", "2026-12-01", database_url=november_books.url()
    )
    assert (waits.code, waits.out) == (3, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--price-per-gb 0.05", "--price-per-gb needs --currency"),
        ("--price-per-gb 0,05 --currency EUR", "expected a decimal"),
        ("--price-per-gb=-1 --currency EUR", "from 0 to below"),
        ("--price-per-gb NaN --currency EUR", "from 0 to below"),
        ("--price-per-gb 1e9 --currency EUR", "from 0 to below"),
        ("--price-per-gb 0.0000000001 --currency EUR", "at most 9 places"),
        ("--currency Euro", "expected a code of ISO 4217"),
        ("--publisher=", "--publisher '': expected a name"),
    ],
)
def test_bad_terms_are_refused_in_one_line(arguments: str, message: str) -> None:
    result = turn_accounting("export", "focus", *arguments.split())
    assert (result.code, result.out) == (2, "")
    assert message in result.error_line
