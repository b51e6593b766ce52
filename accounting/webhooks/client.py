"""Sends requests to one endpoint: signed where they have a message id, and with its API key."""

from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from queue import SimpleQueue
from typing import Self

from accounting.webhooks.endpoint import Endpoint
from accounting.webhooks.message import Request, Response
from accounting.webhooks.outbound_policy import OutboundPolicy
from accounting.webhooks.quoting import quotable, secrets_of_url
from accounting.webhooks.signing import MESSAGE_ID, SECRET_PREFIX, signed_headers
from accounting.webhooks.transport import Sender


class EndpointClient:
    """As many connections to an endpoint as it takes requests at a time. Thread-safe."""

    def __init__(
        self, endpoint: Endpoint, *, private_addresses: bool, connections: int = 1
    ) -> None:
        self._endpoint = endpoint
        self._stack = ExitStack()
        self._senders: SimpleQueue[Sender] = SimpleQueue()
        policy = OutboundPolicy(private_addresses=private_addresses or endpoint.allows_private)
        for _ in range(connections):
            self._senders.put(self._stack.enter_context(Sender(policy)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def send(self, request: Request, now: datetime) -> Response:
        """Sign a request and send it. An answer that repeats a secret is left out.

        Raises SendFailed.
        """
        sender = self._senders.get()
        try:
            response = sender.send(self._authorized(request, now))
        finally:
            self._senders.put(sender)
        if response.is_success:
            return response
        endpoint = self._endpoint
        known = (endpoint.secret, endpoint.previous_secret, endpoint.api_key)
        secrets = [secret.removeprefix(SECRET_PREFIX) for secret in known if secret is not None]
        body = quotable(response.body, secrets + secrets_of_url(request.url))
        return replace(response, body=body)

    def _authorized(self, request: Request, now: datetime) -> Request:
        endpoint = self._endpoint
        headers = dict(request.headers)
        if endpoint.api_key is not None:
            headers["authorization"] = f"Bearer {endpoint.api_key}"
        if (message_id := headers.get(MESSAGE_ID)) is not None:
            headers |= signed_headers(endpoint.secrets(now), message_id, now, request.body)
        return replace(request, headers=headers)
