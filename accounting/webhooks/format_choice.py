"""The format of an endpoint, made for some events."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Engine

from accounting.db.engine import lost_connections
from accounting.db.queries import Queries
from accounting.feed.reader import FeedEvent
from accounting.webhooks.customers import read_event_customers
from accounting.webhooks.endpoint import Endpoint
from accounting.webhooks.formats import make_format
from accounting.webhooks.formats.format import Format
from accounting.webhooks.formats.metering import EventCustomers
from accounting.webhooks.formats.options import FormatName, FormatOptions

_QUERIES: Final = Queries("accounting.webhooks")


def format_of(engine: Engine, endpoint: Endpoint, events: Sequence[FeedEvent]) -> Format:
    """The format of an endpoint, for these events."""
    name = FormatName(endpoint.format)
    options = FormatOptions.from_json(endpoint.options)
    with lost_connections(), engine.connect() as connection:
        source: str = connection.execute(_QUERIES.text("feed_source")).scalar_one()
        customers: EventCustomers = {}
        if name.is_metering:
            customers = read_event_customers(connection, endpoint.number, events, options.customer)
    return make_format(
        name,
        url=endpoint.url,
        options=options,
        batch_size=endpoint.batch_size,
        source=source,
        customers=customers,
    )
