"""Lago: batches of at most 100 events, which it takes or rejects as a whole.

Its billable metric has ``code`` = the meter's name, ``aggregation_type: sum_agg`` and the measure,
such as ``bytes``, as ``field_name``. It bills subscriptions, so a customer here is an
``external_subscription_id``. It sums decimals of either sign, and bills a negative sum as 0. An
event whose ``transaction_id`` the subscription has already is an error of the batch, which says
that the event was taken before.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from accounting.domain.human_text import visible
from accounting.feed.reader import FeedEvent
from accounting.webhooks.formats.envelope import (
    MAX_QUOTED,
    describe,
    dump,
    plain_outcome,
    read_json,
)
from accounting.webhooks.formats.metering import (
    EventCustomers,
    MeteredUsage,
    in_batches,
    metered_usage,
    plain,
)
from accounting.webhooks.formats.options import MAX_BATCH, FormatOptions
from accounting.webhooks.message import Outcome, Refusal, Request, Response

PATH: Final = "/api/v1/events/batch"
_DUPLICATE: Final = "value_already_exist"


@dataclass(frozen=True, slots=True, kw_only=True)
class LagoFormat:
    """The customers of ``customers`` are external ids of subscriptions."""

    url: str
    options: FormatOptions
    customers: EventCustomers
    batch_size: int = MAX_BATCH

    @property
    def repeat_seconds(self) -> float | None:
        return None

    def requests(self, events: Sequence[FeedEvent], now: datetime) -> Sequence[Request | Refusal]:
        del now
        return in_batches(
            metered_usage(events, self.customers, self.options),
            self.batch_size,
            lambda usage: _request(
                self.url, [item.event for item in usage], [self._event(item) for item in usage]
            ),
        )

    def _event(self, usage: MeteredUsage) -> dict[str, Any]:
        payload = usage.event.payload
        named = {key: payload[key] for key in ("user_key", "period") if key in payload}
        return {
            "transaction_id": str(usage.event.event_id),
            "external_subscription_id": usage.customer,
            "code": self.options.meter,
            "timestamp": f"{usage.at.timestamp():.3f}",
            "properties": {
                self.options.value.value: plain(usage.value),
                "kind": usage.kind.value,
                "realm": usage.event.realm,
                **named,
            },
        }

    def outcome(self, request: Request, response: Response) -> Outcome:
        """As any other, except 422, which says what is wrong with which event of the batch.

        The events that it doesn't name were rejected with them, and are sent again without them.
        """
        if response.status != 422:
            return plain_outcome(request, response)
        errors = _errors_by_index(response.body, len(request.events))
        if not errors:
            return Outcome(taken=0, failure=describe(response))
        refusals = [
            Refusal(event=request.events[index], reason=f"Lago: {reason}")
            for index, reason in sorted(errors.items())
            if reason is not None
        ]
        left = [index for index in range(len(request.events)) if index not in errors]
        if not left:
            return Outcome(taken=len(request.events), refusals=refusals)
        documents = json.loads(request.body)["events"]
        rest = _request(
            request.url,
            [request.events[index] for index in left],
            [documents[index] for index in left],
        )
        return Outcome(taken=left[0], refusals=refusals, rest=rest)


def _request(
    url: str, events: Sequence[FeedEvent], documents: Sequence[Mapping[str, Any]]
) -> Request:
    return Request(
        url=url,
        headers={"Content-Type": "application/json"},
        body=dump({"events": documents}),
        events=events,
    )


def _errors_by_index(body: bytes, count: int) -> dict[int, str | None]:
    """Why each event was rejected, by its place in the batch; None: it was taken before.

    Empty if the errors are not those of events, such as of too large a batch.
    """
    try:
        details = read_json(body)["error_details"]
        errors = {int(index): _reason(error) for index, error in details.items()}
    except (ValueError, TypeError, KeyError, AttributeError):  # another shape
        return {}
    return errors if all(0 <= index < count for index in errors) else {}


def _reason(error: Any) -> str | None:
    if error == {"transaction_id": [_DUPLICATE]}:
        return None
    return visible(json.dumps(error, ensure_ascii=False))[:MAX_QUOTED]
