"""Cuts a user off in coturn when the feed says that he has reached a limit.

    export ACCOUNTING_DATABASE_URL=postgresql://cutoff@db/accounting COTURN_CLI_PASSWORD=...
    python cut_off.py --server 127.0.0.1:5766

coturn keeps the key of a live allocation: neither an expired credential nor a removed key ends it.
So this worker ends the user's sessions through the command line (``cs``) of each ``--server``, and
does it again until the credentials have expired that were handed out before the event. With
``--userdb``, where coturn reads keys of users from Redis, it moves the user's key away, and back
when the limit is over or is cleared.

It stores nothing: who is cut off is in ``reporting.limit_states``, and keys that it moved are in
Redis. So it may be killed at any point and started again.
"""

import argparse
import json
import logging
import os
import re
import signal
import socket
import threading
from typing import Any, LiteralString, Self
from uuid import UUID

import psycopg
import redis

from accounting.feed.client import Feed, FeedEvent

log = logging.getLogger("cut_off")
CONSUMER = "cut-off"
EVERY_SECONDS = 1.0
"""How often the feed is read, and sessions of users who were just cut off are ended again."""
PLAIN_NAME = re.compile(r"(?!\d+\Z)[A-Za-z0-9._@-]{1,128}")
"""Only such names are written to coturn's command line: another could be another command."""
AWAY = "cut_off/"
"""Prefix of a key that was moved away."""
MOVED = "cut_off"
"""The set of users whose key was moved away."""
MARGIN_SECONDS = 60
"""A session that was opened with the last valid credential is in coturn's list by then."""

USER = "SELECT realm, user_id FROM reporting.limit_states WHERE limit_id = %s AND user_key = %s"
CUT_OFF = """
SELECT EXISTS (
    SELECT FROM reporting.limit_states
    WHERE realm = %(realm)s AND user_id = %(user)s AND threshold = 100
        AND user_key = ANY (ARRAY(SELECT reporting.possible_user_keys(%(user)s, %(realm)s)))
        AND cleared_at IS NULL AND ends_at > now()
)
"""
"""The keys are for the index."""
LATELY = """
SELECT DISTINCT realm, user_id FROM reporting.limit_states
WHERE threshold = 100 AND user_key IS NOT NULL AND cleared_at IS NULL AND ends_at > now()
    AND reached_at > now() - make_interval(secs => %s)
"""


class CommandLine:
    """coturn's command line. It takes one command at a time."""

    def __init__(self, server: str, password: str) -> None:
        host, _, port = server.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=5)
        self._read_until(b"Enter password: \r\n")
        self.run(password)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def run(self, command: str) -> str:
        """The output of one command."""
        self._socket.sendall(command.encode() + b"\r\n")
        return self._read_until(b"> ")

    def _read_until(self, end: bytes) -> str:
        output = b""
        while not output.endswith(end):
            received = self._socket.recv(65536)
            if not received:
                raise ConnectionError("coturn ended the connection to its command line")
            output += received
        return output.decode(errors="replace")

    def end_sessions(self, realm: str, user: str) -> int:
        """End the sessions of a user; returns how many there were.

        Their user name is the user's, or begins with a time, as in the TURN REST API.
        """
        self.run(f"sr {realm}")
        listed = self.run(f"psp {user}")
        if "too many output sessions" in listed:
            raise RuntimeError("raise cli-max-output-sessions: coturn does not list all sessions")
        name = rf"(?:\d+:)?{re.escape(user)}"
        ids = re.findall(rf"^ +\d+\) id=(\d+), user <{name}>:\r$", listed, re.MULTILINE)
        for session_id in ids:
            self.run(f"cs {session_id}")
        return len(ids)


class Keys:
    """The keys of users in coturn's Redis, as ``redis-userdb`` reads them."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url, decode_responses=True)

    def move_away(self, realm: str, user: str) -> None:
        """Move a user's key away, if there is one. ``turnadmin --delete`` removes it for good."""
        key = f"turn/realm/{realm}/user/{user}/key"
        if self._redis.exists(key):
            self._redis.sadd(MOVED, json.dumps([realm, user]))
            self._redis.rename(key, AWAY + key)

    def moved(self) -> list[tuple[str, str]]:
        """Realm and user of each key that is away."""
        members: Any = self._redis.smembers(MOVED)
        return [(realm, user) for realm, user in map(json.loads, members)]

    def move_back(self, realm: str, user: str) -> None:
        """Move a user's key back, unless the user has a new one by now."""
        key = f"turn/realm/{realm}/user/{user}/key"
        if self._redis.exists(AWAY + key) and not self._redis.renamenx(AWAY + key, key):
            self._redis.delete(AWAY + key)
        self._redis.srem(MOVED, json.dumps([realm, user]))


class Worker:
    """Ends sessions and moves keys."""

    def __init__(self, url: str, servers: list[str], password: str, keys: Keys | None) -> None:
        self._url = url
        self._servers = servers
        self._password = password
        self._keys = keys

    def handle(self, event: FeedEvent) -> None:
        """Cut off the user of an event, unless it says less than that: a warning, or a realm."""
        user_key = event.payload["user_key"]
        if event.payload["threshold"] != 100 or user_key is None:
            return
        found = self._query(USER, [event.payload["limit_id"], UUID(user_key)])
        for realm, user in found[:1]:
            self.cut_off(realm, user)

    def cut_off(self, realm: str, user: str) -> None:
        """Move the key away and end the sessions, if the limit is still reached."""
        if not (PLAIN_NAME.fullmatch(realm) and PLAIN_NAME.fullmatch(user)):
            log.warning("not cut off, the name is not a plain one: %r in %r", user, realm)
            return
        if not self._is_cut_off(realm, user):
            return
        if self._keys is not None:
            self._keys.move_away(realm, user)
        for server in self._servers:
            with CommandLine(server, self._password) as coturn:
                count = coturn.end_sessions(realm, user)
            if count:
                log.info("%s: ended %d sessions of %s in %s", server, count, user, realm)

    def repeat(self, seconds: float) -> None:
        """Cut off again the users who reached a limit within these seconds."""
        for realm, user in self._query(LATELY, [seconds]):
            self.cut_off(realm, user)

    def move_keys_back(self) -> None:
        """Move back the keys of users whose limit is over or was cleared."""
        if self._keys is not None:
            for realm, user in self._keys.moved():
                if not self._is_cut_off(realm, user):
                    self._keys.move_back(realm, user)
                    log.info("%s in %s may connect again", user, realm)

    def _is_cut_off(self, realm: str, user: str) -> bool:
        return bool(self._query(CUT_OFF, {"realm": realm, "user": user})[0][0])

    def _query(self, statement: LiteralString, values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._url) as accounting:
            return accounting.execute(statement, values).fetchall()


def main() -> None:
    """Work until SIGTERM. Any error ends it with a traceback: start it again."""
    parser = argparse.ArgumentParser(description="Cut users off in coturn at their limits.")
    parser.add_argument("--server", action="append", required=True, help="cli-ip:cli-port")
    parser.add_argument("--userdb", help="Redis URL of coturn's redis-userdb")
    parser.add_argument("--lifetime", type=int, default=300, help="of credentials, in seconds")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    url = os.environ["ACCOUNTING_DATABASE_URL"]
    keys = Keys(arguments.userdb) if arguments.userdb else None
    worker = Worker(url, arguments.server, os.environ["COTURN_CLI_PASSWORD"], keys)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Feed(url) as feed:
        while not stop.wait(EVERY_SECONDS):
            for event in feed.consume(CONSUMER, types=["limit.reached"], follow=False):
                worker.handle(event)
            worker.repeat(arguments.lifetime + MARGIN_SECONDS)
            worker.move_keys_back()


if __name__ == "__main__":
    main()
