"""A receiver of webhooks: writes each event once, as a line of JSON.

    pip install standardwebhooks
    python receiver.py 9080 alerts.secret received.jsonl

It takes two kinds of requests, at 127.0.0.1:

- any path: events in the format ``standard``, signed as Standard Webhooks says. The secret is
  in the file that ``turn-accounting webhook add ... > alerts.secret`` wrote. An event
  comes at least once, always with the same ``id``;
- ``/api/v1/events/batch``: meter events as Lago takes them (``--format lago``), each once by its
  ``transaction_id``.

It answers only when the lines are on disk. So it may be killed at any point: what was not answered
comes again, and what it has already is not written twice.
"""

import json
import os
import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

LAGO_PATH = "/api/v1/events/batch"
MAX_BYTES = 1 << 20


class Receiver(HTTPServer):
    """The server, with the ids that it has."""

    def __init__(self, port: int, secret: str, path: Path) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.verifier = Webhook(secret)
        self.file = path.open("a+", encoding="utf-8")
        self.file.seek(0)
        self.ids = set[str]()
        for line in self.file:
            with suppress(ValueError):  # cut off by a kill, and never answered
                self.ids.add(event_id(json.loads(line)))

    def store(self, events: list[dict[str, Any]]) -> None:
        """Write the events that are not there yet."""
        for event in events:
            if event_id(event) not in self.ids:
                self.file.write(f"\n{json.dumps(event)}")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.ids.update(map(event_id, events))


def event_id(event: dict[str, Any]) -> str:
    """What is equal when an event comes again."""
    return str(event["transaction_id"] if "transaction_id" in event else event["id"])


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Receiver

    def do_POST(self) -> None:
        """Store the events of a request, or refuse it."""
        length = int(self.headers.get("Content-Length", MAX_BYTES + 1))
        if length > MAX_BYTES:
            self.send_error(413)
            return
        body = self.rfile.read(length)
        try:
            if self.path == LAGO_PATH:
                events = json.loads(body)["events"]
            else:
                content = self.server.verifier.verify(body, dict(self.headers))
                events = content if isinstance(content, list) else [content]
            self.server.store(events)
        except (KeyError, TypeError, ValueError, WebhookVerificationError) as error:
            self.send_error(400, explain=str(error))
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


if __name__ == "__main__":
    Receiver(
        int(sys.argv[1]), Path(sys.argv[2]).read_text().strip(), Path(sys.argv[3])
    ).serve_forever()
