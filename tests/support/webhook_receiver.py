"""A receiver of webhooks in a process of its own, which a test can break, kill and start again.

with WebhookReceiver() as receiver:
    receiver.behave("/a", do="answer", status=200)
    ...
    receiver.kill()
    receiver.start()  # on the same port, with its record
    assert [each.event_ids for each in receiver.requests("/a")] == [...]
"""

import json
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from tests.support.servers import ADDRESS, Server, free_port

PROGRAM: Final = Path(__file__).with_name("webhook_receiver_process.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRequest:
    """A request and what became of it. Times are of the machine's monotonic clock, in ns.

    ``status``, ``ended_at``: None without an answer; ``status`` is that of an answer which the
    sender may have read. A sender that left before the answer has ``ended_at`` only. ``is_whole``
    False: the answer was made such that no sender can take it for one. ``is_verified``: by the
    public library of Standard Webhooks; None where the receiver has no secret.
    """

    number: str
    path: str
    headers: dict[str, str] = field(repr=False)
    body: str = field(repr=False)
    is_verified: bool | None
    received_at: int
    ended_at: int | None = None
    status: int | None = None
    is_whole: bool = True

    @property
    def event_ids(self) -> Sequence[str]:
        """The ids of its events, in the form of Standard Webhooks."""
        content = json.loads(self.body)
        return [each["id"] for each in (content if isinstance(content, list) else [content])]

    @property
    def is_taken(self) -> bool:
        """Whether the sender may have read that its events were taken."""
        return self.is_whole and self.status is not None and 200 <= self.status < 300


class WebhookReceiver(Server):
    """The receiver. Each path is an endpoint with a behaviour of its own; others answer 404.

    Behaviours (``do``): ``answer`` with ``status``, ``headers`` and ``body``; ``hold`` the request
    until the behaviour is another; ``lie``, 200 and then a reset; ``drop``, a reset; ``garble``;
    ``drip``, an answer byte by byte; ``flood``, a body without end; ``random`` with ``faults``, the
    part of requests that get one of these. With ``secrets`` it answers 401 to wrong signatures.
    """

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self._behaviours: dict[str, dict[str, Any]] = {}
        self._write_behaviours()
        self._record_path.touch()

    @property
    def _record_path(self) -> Path:
        return self.directory / "record.jsonl"

    def url(self, path: str) -> str:
        return f"http://{ADDRESS}:{self.port}{path}"

    def behave(self, path: str, **behaviour: Any) -> None:
        """Set how it answers at a path from now on; without ``secrets`` those stay."""
        kept = {"secrets": self._behaviours.get(path, {}).get("secrets")}
        self._behaviours[path] = {**kept, **behaviour}
        self._write_behaviours()

    def _write_behaviours(self) -> None:
        path = self.directory / "behaviour.json"
        path.with_suffix(".new").write_text(json.dumps(self._behaviours))
        path.with_suffix(".new").replace(path)

    def command(self) -> list[str]:
        return [sys.executable, str(PROGRAM), str(self.port), str(self.directory)]

    def is_ready(self) -> bool:
        try:
            socket.create_connection((ADDRESS, self.port), 5).close()
        except OSError:
            return False
        return True

    def requests(self, path: str | None = None) -> list[RecordedRequest]:
        """The requests so far, in the order in which they came: at one path, or all."""
        lines = self._record_path.read_bytes().split(b"\n")[:-1]  # the last may be incomplete
        requests = recorded_requests(json.loads(line) for line in lines)
        return [each for each in requests if path in (None, each.path)]


def recorded_requests(entries: Iterable[dict[str, Any]]) -> list[RecordedRequest]:
    """The requests of a record."""
    requests: dict[str, RecordedRequest] = {}
    for entry in entries:
        at, kind, number = entry.pop("at"), entry.pop("entry"), entry["number"]
        if kind == "received":
            requests[number] = RecordedRequest(**entry, received_at=at)
        elif kind == "answered":
            changes = {name: entry[name] for name in ("status", "is_whole")}
            requests[number] = replace(requests[number], ended_at=at, **changes)
        elif requests[number].ended_at is None:
            requests[number] = replace(requests[number], ended_at=at)
    return list(requests.values())
