"""The terms of an export in FOCUS 1.2: a price, and the names of companies.

Prices, quantities and costs are exact decimals, never rounded: a cost is the product of the other
two, as the specification asks, and an invoice rounds its own total.
"""

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from accounting.errors import UsageError

DEFAULT_CURRENCY: Final = "USD"
"""Where there is no price: the column may not be null, and all costs are 0."""
PRICE_PLACES: Final = 9
"""With the nine of a quantity in GB they are the 18 of a cost."""
MAX_PRICE: Final = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class FocusTerms:
    """What the books don't know: a price, and the names of companies.

    ``price_per_gb``: for 10^9 bytes, received from and sent to clients. Names that are None: the
    provider is the realm, the others are the provider.
    """

    price_per_gb: Decimal | None = None
    currency: str = DEFAULT_CURRENCY
    provider: str | None = None
    publisher: str | None = None
    invoice_issuer: str | None = None

    def parameters(self) -> dict[str, Any]:
        """The parameters of ``focus_rows``."""
        price = self.price_per_gb
        words = "" if price is None else f", at {price:f} {self.currency} per GB"
        return {
            "price_per_gb": price,
            "price_words": words,
            "currency": self.currency,
            "provider": self.provider,
            "publisher": self.publisher,
            "invoice_issuer": self.invoice_issuer,
        }


def focus_terms(
    price_per_gb: str | None,
    currency: str | None,
    provider: str | None = None,
    publisher: str | None = None,
    invoice_issuer: str | None = None,
) -> FocusTerms:
    """The terms that options give. Raises UsageError for a bad price, currency or name."""
    if price_per_gb is not None and currency is None:
        raise UsageError("--price-per-gb needs --currency, such as EUR")
    if currency is not None and not re.fullmatch("[A-Z]{3}", currency):
        raise UsageError(f"--currency {currency!r}: expected a code of ISO 4217, such as EUR")
    names = {"provider": provider, "publisher": publisher, "invoice-issuer": invoice_issuer}
    for option, name in names.items():
        if name is not None and not name.strip():
            raise UsageError(f"--{option} {name!r}: expected a name")
    return FocusTerms(
        price_per_gb=None if price_per_gb is None else _price(price_per_gb),
        currency=currency or DEFAULT_CURRENCY,
        provider=provider,
        publisher=publisher,
        invoice_issuer=invoice_issuer,
    )


def _price(text: str) -> Decimal:
    expected = f"expected a decimal such as 0.045, with at most {PRICE_PLACES} places"
    try:
        price = Decimal(text)
    except InvalidOperation:
        raise UsageError(f"--price-per-gb {text!r}: {expected}") from None
    if not price.is_finite() or not 0 <= price < MAX_PRICE:
        raise UsageError(f"--price-per-gb {text!r}: {expected}, from 0 to below {MAX_PRICE}")
    if price != price.quantize(Decimal(1).scaleb(-PRICE_PLACES)):
        raise UsageError(f"--price-per-gb {text!r}: {expected}")
    return abs(price)  # a negative zero too
