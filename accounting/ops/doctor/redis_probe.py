"""The probe of a Redis: asks, and tries what a collector needs, without leaving a trace.

Whether PSYNC is allowed is found without a synchronisation: sent in one piece after a PING, it
meets the PING's answer still waiting to be sent, which Redis refuses once the right to it is
checked ("PSYNC are invalid with pending output", syncCommand in replication.c).
"""

import time
from dataclasses import replace
from typing import Final, Literal

from redis.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from accounting.capture.pubsub.source import CHANNEL_PATTERNS
from accounting.capture.redis.address import Endpoint, parse_address
from accounting.capture.redis.connection import connect, execute_command, to_source_lost
from accounting.capture.source import SourceLost
from accounting.ops.doctor.clock import ClockOffset, measure_clock
from accounting.ops.doctor.redis_server import RedisFacts, Unreachable

SETTINGS: Final = (
    "timeout",
    "tcp-keepalive",
    "repl-backlog-size",
    "repl-backlog-ttl",
    "client-output-buffer-limit",
)
INFO_FIELDS: Final = {
    "repl-backlog-size": "repl_backlog_size",
    "maxmemory-policy": "maxmemory_policy",
}
"""What INFO tells of the settings, also where CONFIG is refused."""
RATE_SECONDS: Final = 1.0
PENDING_OUTPUT: Final = "pending output"


def probe_redis(url: str, address: str) -> tuple[RedisFacts | Unreachable, ClockOffset | None]:
    """Facts of the server at ``url``, and its clock if it tells. ``place``: its name for people.

    Takes a second, to see how fast the stream moves. Raises ConfigurationError for a wrong URL.
    """
    where = parse_address(url)
    try:
        found = where.resolve()
        connection = found.new_connection()
        connect(connection)
    except SourceLost as refusal:
        advice = refusal.advice or "look whether it runs, and at ACCOUNTING_REDIS_URL and firewalls"
        return Unreachable(reason=str(refusal), advice=advice), None
    try:
        facts, clock = _examine(connection, address)
        refused = {**facts.refused, **_try_capturing(found)}
        return replace(facts, refused=refused), clock
    except (RedisError, OSError, SourceLost) as broken:
        reason = str(broken if isinstance(broken, SourceLost) else to_source_lost(broken))
        advice = "it went away while it was examined: run doctor again"
        return Unreachable(reason=reason, advice=advice), None
    finally:
        connection.disconnect()  # type: ignore[no-untyped-call]


def _examine(connection: AbstractConnection, place: str) -> tuple[RedisFacts, ClockOffset | None]:
    refused: dict[str, str] = {}

    def ask_for(right: str, *words: str) -> object:
        try:
            return execute_command(connection, *words)
        except ResponseError as refusal:
            refused.setdefault(right, str(refusal))
            return None

    info = _info(ask_for("INFO", "INFO", "server"))
    before = _info(ask_for("INFO", "INFO", "replication"))
    began = time.monotonic()
    memory = _info(ask_for("INFO", "INFO", "memory"))
    settings = {
        name: told for name, key in INFO_FIELDS.items() if (told := (before | memory).get(key))
    }
    for name in SETTINGS:
        answer = ask_for("CONFIG", "CONFIG", "GET", name)
        if isinstance(answer, list) and len(answer) == 2:
            settings[name] = _text(answer[1])
    ask_for("SCAN", "SCAN", "0", "COUNT", "1")
    ask_for("OBJECT", "OBJECT", "IDLETIME", "turn/doctor")
    ask_for("SELECT", "SELECT", "0")
    ask_for("PSYNC", "REPLCONF", "listening-port", "0")
    clock = measure_clock(lambda: _seconds(ask_for("TIME", "TIME")))
    rate = None
    if before.get("repl_backlog_active") == "1":
        time.sleep(max(0.0, RATE_SECONDS - (time.monotonic() - began)))
        after = _info(ask_for("INFO", "INFO", "replication"))
        moved = int(after["master_repl_offset"]) - int(before["master_repl_offset"])
        rate = moved / (time.monotonic() - began)
    kind: Literal["Redis", "Valkey"] = (
        "Valkey" if info.get("server_name") == "valkey" or "valkey_version" in info else "Redis"
    )
    facts = RedisFacts(
        address=place,
        kind=kind,
        version=info.get("valkey_version") or info.get("redis_version", ""),
        role=before.get("role", ""),
        is_cluster="cluster" in (info.get("redis_mode"), info.get("server_mode")),
        refused=refused,
        settings=settings,
        stream_bytes_per_second=rate,
    )
    return facts, clock


def _try_capturing(place: Endpoint) -> dict[str, str]:
    """What the server says to PSUBSCRIBE and PSYNC, each on a connection of its own."""
    refused = {}
    subscribing = place.new_connection()
    try:
        connect(subscribing)
        for pattern in CHANNEL_PATTERNS:
            execute_command(subscribing, "PSUBSCRIBE", pattern)
    except ResponseError as refusal:
        refused["PSUBSCRIBE"] = str(refusal)
    finally:
        subscribing.disconnect()  # type: ignore[no-untyped-call]
    replicating = place.new_connection()
    try:
        connect(replicating)
        pieces = replicating.pack_commands([("PING",), ("PSYNC", "?", "-1")])  # type: ignore[no-untyped-call]
        replicating.send_packed_command([b"".join(pieces)])  # type: ignore[no-untyped-call]
        replicating.read_response()
        replicating.read_response()
    except ResponseError as refusal:
        if PENDING_OUTPUT not in str(refusal):
            refused["PSYNC"] = str(refusal)
    finally:
        replicating.disconnect()  # type: ignore[no-untyped-call]
    return refused


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _info(answer: object) -> dict[str, str]:
    lines = _text(answer or b"").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _seconds(answer: object) -> float | None:
    if not isinstance(answer, list):
        return None
    seconds, microseconds = answer
    return int(seconds) + int(microseconds) / 1_000_000
