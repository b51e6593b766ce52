"""An endpoint: where to, which events, and in which form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A row of ``webhooks``, without its position. ``types`` None: all; ``realm`` None: all realms.

    ``options``: those of its format. ``api_key``: the secret by which a receiver knows the sender,
    where its format has one. The secrets are not in the text of this object.
    """

    number: int
    url: str = field(repr=False)
    format: str
    types: Sequence[str] | None
    realm: str | None
    options: Mapping[str, Any]
    allows_private: bool
    batch_size: int
    parallel: int
    secret: str = field(repr=False)
    previous_secret: str | None = field(repr=False)
    previous_until: datetime | None
    api_key: str | None = field(repr=False)

    def secrets(self, now: datetime) -> Sequence[str]:
        """The secrets that sign at a time, the newest first."""
        if (
            self.previous_secret is None
            or self.previous_until is None
            or self.previous_until <= now
        ):
            return [self.secret]
        return [self.secret, self.previous_secret]


def shown_url(url: str) -> str:
    """A URL for people: without its query, which may be a secret."""
    parts = urlsplit(url)
    return parts._replace(query="...", fragment="").geturl() if parts.query else url
