"""The format of an endpoint, made for some events."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Engine

from accounting.feed.reader import FeedEvent
from accounting.webhooks.endpoint import Endpoint
from accounting.webhooks.formats.standard import StandardFormat
from accounting.webhooks.message import Format

FORMAT_NAMES: Final = ("standard",)


def is_metering(format_name: str) -> bool:
    """Whether the receivers of a format add up usage.

    Such a receiver would count twice what a database that was restored from a backup says again
    under another id, so that delivery stops there until an operator decides.
    """
    return format_name != "standard"


def format_of(engine: Engine, endpoint: Endpoint, events: Sequence[FeedEvent]) -> Format:
    """The format of an endpoint, for these events."""
    del engine, events
    return StandardFormat(url=endpoint.url, batch_size=endpoint.batch_size)
