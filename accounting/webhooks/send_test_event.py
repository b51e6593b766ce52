"""Send one event of the type ``webhook.test`` to an endpoint now, outside of the feed."""

from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from sqlalchemy import Engine

from accounting.errors import UsageError
from accounting.feed.reader import FeedEvent
from accounting.webhooks.client import EndpointClient
from accounting.webhooks.endpoints import find_endpoint
from accounting.webhooks.format_choice import format_of
from accounting.webhooks.message import Request, SendFailed

TYPE: Final = "webhook.test"


@dataclass(frozen=True, slots=True, kw_only=True)
class SentTest:
    """``status`` None: no answer. ``failure`` None: the endpoint took the event."""

    status: int | None
    failure: str | None


def send_test_event(engine: Engine, number: int, *, private_addresses: bool) -> SentTest:
    """Send the event. Raises UsageError for an unknown endpoint, and where its format has none."""
    endpoint, now = find_endpoint(engine, number)
    event = FeedEvent(
        seq=0,
        event_id=uuid4(),
        type=TYPE,
        realm=endpoint.realm or "",
        payload={"webhook": number},
        created_at=now,
    )
    format_ = format_of(engine, endpoint, [event])
    requests = [step for step in format_.requests([event], now) if isinstance(step, Request)]
    if not requests:
        raise UsageError(
            f"webhook {number} can't be tested: its format {endpoint.format} has only usage"
        )
    with EndpointClient(endpoint, private_addresses=private_addresses) as client:
        try:
            response = client.send(requests[0], now)
        except SendFailed as error:
            return SentTest(status=error.status, failure=str(error))
    outcome = format_.outcome(requests[0], response)
    return SentTest(status=response.status, failure=outcome.failure)
