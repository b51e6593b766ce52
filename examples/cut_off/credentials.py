r"""A credential service that gives a user no credentials who has reached a limit.

    ACCOUNTING_DATABASE_URL=postgresql://cutoff@db/accounting TURN_SECRET=north \
        python credentials.py --realm example.org --uri turn:turn.example.org:3478

It answers ``GET /?user=alice`` as the TURN REST API does: a user name that begins with the time at
which it expires, and the password that follows from it and coturn's ``static-auth-secret``. The
application that knows who is logged in asks it; it listens on the loopback address only.

An allocation can begin until the credentials expire, whatever this service says later. So they
should live for minutes: clients ask for new ones before each call.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import re
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import psycopg

PLAIN_NAME = re.compile(r"(?!\d+\Z)[A-Za-z0-9._@-]{1,128}")
"""Names that mean the same to coturn, its command line and the books. Digits alone are a time."""

CUT_OFF = """
SELECT EXISTS (
    SELECT FROM reporting.limit_states
    WHERE realm = %(realm)s AND user_id = %(user)s AND threshold = 100
        AND user_key = ANY (ARRAY(SELECT reporting.possible_user_keys(%(user)s, %(realm)s)))
        AND cleared_at IS NULL AND ends_at > now()
)
"""
"""The keys are for the index."""


def is_cut_off(url: str, realm: str, user: str) -> bool:
    """Whether a limit of this user is reached in an hour, day, month or period that still lasts."""
    with psycopg.connect(url, connect_timeout=2) as accounting:
        row = accounting.execute(CUT_OFF, {"realm": realm, "user": user}).fetchone()
    return row is not None and bool(row[0])


def credentials(secret: str, user: str, seconds: int) -> dict[str, object]:
    """Credentials that coturn's ``use-auth-secret`` accepts until they expire."""
    username = f"{int(time.time()) + seconds}:{user}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return {
        "username": username,
        "password": base64.b64encode(digest).decode(),
        "ttl": seconds,
    }


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    def __init__(self, arguments: argparse.Namespace, *rest: object) -> None:
        self.arguments = arguments
        super().__init__(*rest)  # type: ignore[arg-type]

    def do_GET(self) -> None:  # the name that http.server calls
        """Credentials, 403 for a user who is cut off, 503 while the books can't be asked."""
        user = parse_qs(urlsplit(self.path).query).get("user", [""])[0]
        if not PLAIN_NAME.fullmatch(user):
            self.answer(400, {"detail": "expected ?user=NAME of letters, digits and ._@-"})
            return
        try:
            cut_off = is_cut_off(os.environ["ACCOUNTING_DATABASE_URL"], self.arguments.realm, user)
        except psycopg.OperationalError:
            # The limits can't be known. To give credentials instead, set cut_off to False here.
            self.answer(503, {"detail": "the books can't be asked now"})
            return
        if cut_off:
            self.answer(403, {"detail": f"{user} has used up a limit"})
            return
        given = credentials(os.environ["TURN_SECRET"], user, self.arguments.lifetime)
        self.answer(200, {**given, "uris": self.arguments.uri})

    def answer(self, status: int, body: dict[str, object]) -> None:
        """Write the response."""
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(text)


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description="Hand out TURN credentials.")
    parser.add_argument("--realm", required=True)
    parser.add_argument("--uri", action="append", default=[])
    parser.add_argument("--lifetime", type=int, default=300, help="seconds that they are valid")
    parser.add_argument("--port", type=int, default=8081)
    arguments = parser.parse_args()
    with ThreadingHTTPServer(("127.0.0.1", arguments.port), partial(Handler, arguments)) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
