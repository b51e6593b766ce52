"""The receiver of the proofs keeps its record and does what it is asked to."""

import threading
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook

from accounting.webhooks.message import Request, SendFailed
from accounting.webhooks.outbound_policy import OutboundPolicy
from accounting.webhooks.transport import Sender
from tests.support.servers import wait_until
from tests.support.webhook_receiver import WebhookReceiver

POLICY = OutboundPolicy(private_addresses=True)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_a_record_outlives_a_kill_and_has_what_each_sender_may_have_seen() -> None:
    with WebhookReceiver() as receiver, Sender(POLICY) as sender:

        def post(path: str, secret: str = SECRET) -> int:
            body = f'{{"id": "{path}"}}'
            now = datetime.now(UTC)
            headers = {
                "webhook-id": path,
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": Webhook(secret).sign(path, now, body),
            }
            url = receiver.url(path)
            return sender.send(
                Request(url=url, headers=headers, body=body.encode(), events=())
            ).status

        receiver.behave("/a", do="answer", secrets=[SECRET])
        assert post("/a") == 200
        assert post("/a", "whsec_" + "A" * 32) == 401
        receiver.behave("/a", do="answer", status=500)
        assert post("/a") == 500
        assert post("/b") == 404
        for action, reason in [("lie", "closed"), ("drop", "closed"), ("garble", "protocol")]:
            receiver.behave("/a", do=action)
            with pytest.raises(SendFailed) as failed:
                post("/a")
            assert failed.value.reason == reason
        for action in ("drip", "flood"):
            receiver.behave("/a", do=action)
            assert post("/a") == 200

        receiver.behave("/c", do="hold")

        def post_and_fail() -> None:
            with pytest.raises(SendFailed):
                post("/c")

        holding = threading.Thread(target=post_and_fail)
        holding.start()
        wait_until(lambda: receiver.requests("/c"))
        receiver.kill()
        holding.join()
        receiver.start()
        receiver.behave("/c", do="answer")
        assert post("/c") == 200

        seen = [(each.status, each.is_taken, each.is_verified) for each in receiver.requests("/a")]
        assert seen == [
            (200, True, True),
            (401, False, False),
            (500, False, True),
            (200, False, True),
            (200, False, True),
            (200, False, True),
            (200, True, True),
            (200, True, True),
        ]
        held, taken = receiver.requests("/c")
        assert (held.status, held.ended_at, taken.status) == (None, None, 200)
        assert held.event_ids == taken.event_ids == ["/c"]
        assert [each.status for each in receiver.requests("/b")] == [404]


def test_a_request_that_is_held_ends_with_its_sender_or_another_behaviour() -> None:
    with WebhookReceiver() as receiver:
        receiver.behave("/a", do="hold")
        impatient = OutboundPolicy(private_addresses=True, total_seconds=0.2)
        request = Request(url=receiver.url("/a"), headers={}, body=b"{}", events=())
        with Sender(impatient) as sender, pytest.raises(SendFailed, match="no complete answer"):
            sender.send(request)
        wait_until(lambda: [each for each in receiver.requests() if each.ended_at])
        with Sender(POLICY) as sender:
            answers: list[int] = []
            holding = threading.Thread(target=lambda: answers.append(sender.send(request).status))
            holding.start()
            wait_until(lambda: len(receiver.requests()) == 2)
            receiver.behave("/a", do="answer", status=202)
            holding.join()
        assert answers == [202]
        assert [each.status for each in receiver.requests()] == [None, 202]
