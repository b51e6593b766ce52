"""OpenMeter, Lago and Stripe on loopback: they validate, deduplicate and add up as the real ones.

What they take and answer is described by the engines' own API descriptions and documentation, of
which docs/webhooks.md names the places.

with StripeServer(now=...) as stripe:
    ... POST to stripe.url ...
    assert stripe.sums() == {("cus_1", "2026-11"): Decimal(300)}
"""

import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Annotated, Any, ClassVar, Final, Literal, Self
from urllib.parse import parse_qsl

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

API_KEY: Final = "key-of-the-engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What an engine counted of one event."""

    event_id: str
    customer: str
    at: datetime
    value: Decimal
    properties: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """A request as it came; names of headers in lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAnswer:
    """An answer: a status and a JSON document."""

    status: int
    document: Any = None


class MeteringServer:
    """One engine, from ``with`` to its end.

    ``lost_answers``: of so many of the next requests, after the engine has handled them, the
    connection is cut instead of answering. ``outages``: so many of the next requests get a 503
    and are not handled. ``now``: the engine's clock.
    """

    path: ClassVar[str]

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.counted: list[Counted] = []
        self.request_count = 0
        self.lost_answers = 0
        self.outages = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{self.path}"

    def sums(self) -> dict[tuple[str, str], Decimal]:
        """The sum of each customer in each month of UTC, without sums of 0."""
        sums: dict[tuple[str, str], Decimal] = {}
        for item in self.counted:
            key = item.customer, f"{item.at:%Y-%m}"
            sums[key] = sums.get(key, Decimal(0)) + item.value
        return {key: value for key, value in sums.items() if value}

    def answer(self, request: EngineRequest) -> EngineAnswer | None:
        """The answer to a request; None: cut the connection."""
        with self._lock:
            self.request_count += 1
            if request.path != self.path:
                return EngineAnswer(status=404)
            if request.headers.get("authorization") != f"Bearer {API_KEY}":
                return EngineAnswer(status=401)
            if self.outages:
                self.outages -= 1
                return EngineAnswer(status=503)
            answer = self.handle(request)
            if self.lost_answers:
                self.lost_answers -= 1
                return None
            return answer

    def handle(self, request: EngineRequest) -> EngineAnswer:
        """Validate a request and count what it has."""
        raise NotImplementedError


def _handler(engine: MeteringServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = engine.answer(EngineRequest(path=self.path, headers=headers, body=body))
            if answer is None:
                self.close_connection = True
                return
            text = b"" if answer.document is None else json.dumps(answer.document).encode()
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments: object) -> None:
            """Log nothing."""

    return Handler


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Name = Annotated[str, Field(min_length=1)]


class _CloudEvent(_Model):
    """What OpenMeter's ingest API takes."""

    id: Name
    source: Name
    specversion: Literal["1.0"]
    type: Name
    subject: Name
    time: Annotated[AwareDatetime, Field(strict=False)]
    datacontenttype: Literal["application/json"]
    data: dict[str, Any]


class OpenMeterServer(MeteringServer):
    """Sums ``$.value`` of events of one type as 64-bit floats; drops a known source and id."""

    path = "/api/v1/events"
    event_type: ClassVar = "turn_usage"
    dropped = 0

    def handle(self, request: EngineRequest) -> EngineAnswer:
        if request.headers["content-type"] != "application/cloudevents-batch+json":
            return EngineAnswer(status=400, document={"detail": "invalid content type"})
        try:
            events = TypeAdapter(list[_CloudEvent]).validate_json(request.body)
        except ValidationError as error:
            return EngineAnswer(status=400, document={"detail": str(error)})
        for event in events:
            event_id = f"{event.source} {event.id}"
            if any(item.event_id == event_id for item in self.counted):
                self.dropped += 1
            elif event.type == self.event_type:
                self.counted.append(
                    Counted(
                        event_id=event_id,
                        customer=event.subject,
                        at=event.time,
                        value=Decimal(float(event.data["value"])),
                        properties=event.data,
                    )
                )
        return EngineAnswer(status=204)


class _LagoEvent(_Model):
    """An event as Lago's batch takes it."""

    transaction_id: str
    external_subscription_id: Name
    code: Name
    timestamp: str
    properties: dict[str, str | int | float]


class _LagoBatch(_Model):
    events: list[_LagoEvent]


class LagoServer(MeteringServer):
    """Sums a property as decimals. Takes or rejects a batch as a whole.

    First it looks whether each event is valid, then whether a subscription has its transaction id.
    ``broken``: transaction ids whose expression fails.
    """

    path = "/api/v1/events/batch"
    field_name: ClassVar = "bytes"

    def __init__(self, now: datetime, *, broken: Iterable[str] = ()) -> None:
        super().__init__(now)
        self.broken = set(broken)

    def handle(self, request: EngineRequest) -> EngineAnswer:
        try:
            batch = _LagoBatch.model_validate_json(request.body)
        except ValidationError as error:
            return EngineAnswer(status=400, document={"error": str(error)})
        events = batch.events
        if len(events) > 100:
            return _unprocessable({"events": ["too_many_events"]})
        errors = {
            str(index): "the expression can't be evaluated"
            for index, event in enumerate(events)
            if event.transaction_id in self.broken
        }
        if errors:
            return _unprocessable(errors)
        known = {item.event_id for item in self.counted}
        taken: list[Counted] = []
        duplicates = {}
        for index, event in enumerate(events):
            event_id = f"{event.external_subscription_id} {event.transaction_id}"
            if event_id in known:
                duplicates[str(index)] = {"transaction_id": ["value_already_exist"]}
                continue
            known.add(event_id)
            taken.append(
                Counted(
                    event_id=event_id,
                    customer=event.external_subscription_id,
                    at=datetime.fromtimestamp(float(event.timestamp), UTC),
                    value=Decimal(str(event.properties.get(self.field_name, 0))),
                    properties=event.properties,
                )
            )
        if duplicates:
            return _unprocessable(duplicates)
        self.counted += taken
        return EngineAnswer(status=200, document={"events": [{} for _ in events]})


def _unprocessable(details: Mapping[str, Any]) -> EngineAnswer:
    return EngineAnswer(
        status=422,
        document={
            "status": 422,
            "error": "Unprocessable Entity",
            "code": "validation_errors",
            "error_details": details,
        },
    )


class _MeterEvent(_Model):
    """The form of a meter event."""

    event_name: Annotated[str, Field(min_length=1, max_length=100)]
    customer: Annotated[str, Field(alias="payload[stripe_customer_id]", min_length=1)]
    value: Annotated[str, Field(alias="payload[value]", pattern=r"^-?\d+$")]
    identifier: Annotated[str, Field(min_length=1, max_length=100)]
    timestamp: Annotated[str, Field(pattern=r"^\d+$")]


@dataclass(slots=True)
class _Saved:
    """The answer to an idempotency key."""

    at: datetime
    body: bytes
    answer: EngineAnswer


@dataclass(slots=True)
class _Memory:
    """What Stripe remembers for a day."""

    keys: dict[str, _Saved] = field(default_factory=dict)
    identifiers: dict[str, datetime] = field(default_factory=dict)

    def forget(self, before: datetime) -> None:
        self.keys = {key: saved for key, saved in self.keys.items() if saved.at > before}
        self.identifiers = {
            identifier: at for identifier, at in self.identifiers.items() if at > before
        }


class StripeServer(MeteringServer):
    """Sums whole numbers. Remembers identifiers and idempotency keys for a day.

    ``customers``: those that it has; None: any. ``meters``: the event names of its meters.
    ``broken_requests``: so many of the next requests end in a 500, which the key keeps.
    """

    path = "/v1/billing/meter_events"

    def __init__(self, now: datetime, *, customers: Iterable[str] | None = None) -> None:
        super().__init__(now)
        self.customers = None if customers is None else set(customers)
        self.meters = {"turn_usage"}
        self.broken_requests = 0
        self._memory = _Memory()

    def handle(self, request: EngineRequest) -> EngineAnswer:
        self._memory.forget(self.now - timedelta(days=1))
        if request.headers["content-type"] != "application/x-www-form-urlencoded":
            return _invalid("expected a form")
        key = request.headers["idempotency-key"]
        if (saved := self._memory.keys.get(key)) is not None:
            if saved.body != request.body:
                return _invalid("Keys for idempotent requests can only be used with the same "
                                "parameters", kind="idempotency_error")  # fmt: skip
            return saved.answer
        try:
            form = _MeterEvent.model_validate(dict(parse_qsl(request.body.decode())))
        except ValidationError as error:
            return _invalid(str(error))
        answer = self._create(form)
        if answer.status in (200, 500):
            self._memory.keys[key] = _Saved(self.now, request.body, answer)
        return answer

    def _create(self, form: _MeterEvent) -> EngineAnswer:
        if self.broken_requests:
            self.broken_requests -= 1
            return EngineAnswer(status=500, document={"error": {"type": "api_error"}})
        if form.event_name not in self.meters:
            return _invalid("No active meter found with this event name", param="event_name")
        if self.customers is not None and form.customer not in self.customers:
            return _invalid(f"No such customer: '{form.customer}'", code="resource_missing")
        if len(form.value.removeprefix("-")) > 15:
            return _invalid("at most 15 digits", code="meter_event_value_too_many_digits")
        at = datetime.fromtimestamp(int(form.timestamp), UTC)
        if at <= self.now - timedelta(days=35):
            return _invalid("more than 35 days in the past", code="timestamp_too_far_in_past")
        if at > self.now + timedelta(minutes=5):
            return _invalid("more than 5 minutes in the future", code="timestamp_in_future")
        if form.identifier in self._memory.identifiers:
            return _invalid(f"An event already exists with identifier {form.identifier}.")
        self._memory.identifiers[form.identifier] = self.now
        self.counted.append(
            Counted(
                event_id=form.identifier,
                customer=form.customer,
                at=at,
                value=Decimal(form.value),
                properties={},
            )
        )
        return EngineAnswer(status=200, document={"object": "billing.meter_event"})


def _invalid(message: str, *, kind: str = "invalid_request_error", **details: str) -> EngineAnswer:
    return EngineAnswer(
        status=400, document={"error": {"type": kind, "message": message, **details}}
    )
