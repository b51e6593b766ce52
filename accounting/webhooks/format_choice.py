"""The format of an endpoint, made for some events."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Engine

from accounting.db.engine import lost_connections
from accounting.db.queries import Queries
from accounting.feed.reader import FeedEvent
from accounting.webhooks.endpoint import Endpoint
from accounting.webhooks.formats import make_format
from accounting.webhooks.formats.options import FormatName, FormatOptions
from accounting.webhooks.message import Format

FORMAT_NAMES: Final[Sequence[str]] = (FormatName.STANDARD, FormatName.CLOUDEVENTS)
"""Those that an endpoint can have."""
_QUERIES: Final = Queries("accounting.webhooks")


def format_of(engine: Engine, endpoint: Endpoint, events: Sequence[FeedEvent]) -> Format:
    """The format of an endpoint, for these events."""
    del events  # customers are looked up for metering formats only
    with lost_connections(), engine.connect() as connection:
        source: str = connection.execute(_QUERIES.text("feed_source")).scalar_one()
    return make_format(
        FormatName(endpoint.format),
        url=endpoint.url,
        options=FormatOptions.from_json(endpoint.options),
        batch_size=endpoint.batch_size,
        source=source,
        recipients={},
    )
