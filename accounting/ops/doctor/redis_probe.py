"""The probe of a Redis: reads its facts, and tries the commands that a collector needs.

It tests the right to PSYNC without a synchronization: the server receives PING and PSYNC in one
piece, checks the right, and then refuses PSYNC because the reply to PING isn't sent yet ("PSYNC are
invalid with pending output", syncCommand in replication.c).
"""

import time
from dataclasses import replace
from typing import Final, Literal

from redis.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from accounting.capture.pubsub.protocol import CHANNEL_PATTERNS
from accounting.capture.redis.address import Endpoint, parse_address
from accounting.capture.redis.connection import connect, execute_command, to_source_lost
from accounting.capture.source import SourceLost
from accounting.domain.server_identity import ServerIdentity, valid_id
from accounting.ops.doctor.clock import ClockOffset, measure_clock
from accounting.ops.doctor.coturn_login import REFUSALS, RefusalFacts, RefusedClient
from accounting.ops.doctor.redis_server import RedisFacts, Unreachable, version_numbers

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
"""Fields of INFO by the setting that they show, for servers that refuse CONFIG."""
ERRORSTATS_VERSION: Final = (6, 2)
"""Of Redis: the first with INFO errorstats."""
RATE_SECONDS: Final = 1.0
PENDING_OUTPUT: Final = "pending output"


def probe_redis(url: str, address: str) -> tuple[RedisFacts | Unreachable, ClockOffset | None]:
    """The facts of the server at ``url``, and its clock where TIME is allowed.

    ``address`` is the URL without its password. Takes a second, to measure the rate of the stream.
    Raises ConfigurationError for a wrong URL.
    """
    server_address = parse_address(url)
    try:
        endpoint = server_address.resolve()
        connection = endpoint.new_connection()
        connect(connection)
    except SourceLost as refusal:
        advice = refusal.advice or "check that it runs, ACCOUNTING_REDIS_URL, and firewalls"
        return Unreachable(reason=str(refusal), advice=advice), None
    try:
        facts, clock_offset = _read_facts(connection, address)
        refused = {**facts.refused, **_try_capturing(endpoint)}
        return replace(facts, refused=refused), clock_offset
    except (RedisError, OSError, SourceLost) as failure:
        reason = str(failure if isinstance(failure, SourceLost) else to_source_lost(failure))
        advice = "the connection broke during the examination: run doctor again"
        return Unreachable(reason=reason, advice=advice), None
    finally:
        connection.disconnect()  # type: ignore[no-untyped-call]


def _read_facts(
    connection: AbstractConnection, address: str
) -> tuple[RedisFacts, ClockOffset | None]:
    refused: dict[str, str] = {}

    def try_command(right: str, *words: str) -> object:
        try:
            return execute_command(connection, *words)
        except ResponseError as refusal:
            refused.setdefault(right, str(refusal))
            return None

    info = _info(try_command("INFO", "INFO", "server"))
    refusals = _refusal_counts(try_command("INFO", "INFO", "errorstats"))
    before = _info(try_command("INFO", "INFO", "replication"))
    started_at = time.monotonic()
    memory = _info(try_command("INFO", "INFO", "memory"))
    settings = {
        name: value for name, key in INFO_FIELDS.items() if (value := (before | memory).get(key))
    }
    for name in SETTINGS:
        reply = try_command("CONFIG", "CONFIG", "GET", name)
        if isinstance(reply, list) and len(reply) == 2:
            settings[name] = _text(reply[1])
    try_command("SCAN", "SCAN", "0", "COUNT", "1")
    try_command("OBJECT", "OBJECT", "IDLETIME", "turn/doctor")
    try_command("SELECT", "SELECT", "0")
    try_command("PSYNC", "REPLCONF", "listening-port", "0")
    clock_offset = measure_clock(lambda: _seconds(try_command("TIME", "TIME")))
    rate = None
    if before.get("repl_backlog_active") == "1":
        time.sleep(max(0.0, RATE_SECONDS - (time.monotonic() - started_at)))
        after = _info(try_command("INFO", "INFO", "replication"))
        sent_bytes = int(after["master_repl_offset"]) - int(before["master_repl_offset"])
        rate = sent_bytes / (time.monotonic() - started_at)
    refusals_after = _refusal_counts(try_command("INFO", "INFO", "errorstats"))
    # Not among the rights that doctor asks for: it shows names of users and clients.
    acl_log = _refused_clients(try_command("ACL LOG", "ACL", "LOG"))
    kind: Literal["Redis", "Valkey"] = (
        "Valkey" if info.get("server_name") == "valkey" or "valkey_version" in info else "Redis"
    )
    version = info.get("valkey_version") or info.get("redis_version", "")
    facts = RedisFacts(
        address=address,
        kind=kind,
        version=version,
        role=before.get("role", ""),
        failover_state=before.get("master_failover_state", ""),
        is_cluster="cluster" in (info.get("redis_mode"), info.get("server_mode")),
        refused=refused,
        settings=settings,
        stream_bytes_per_second=rate,
        refusals=RefusalFacts(
            log=acl_log,
            has_counts="INFO" not in refused
            and (kind == "Valkey" or version_numbers(version) >= ERRORSTATS_VERSION),
            totals=refusals_after,
            recent={name: count - refusals.get(name, 0) for name, count in refusals_after.items()},
        ),
        identity=ServerIdentity(
            address=address.rpartition("@")[2].rpartition("//")[2],
            run_id=valid_id(info.get("run_id", "")),
            replication_id=valid_id(before.get("master_replid", "")),
            previous_replication_id=valid_id(before.get("master_replid2", "")),
        ),
    )
    return facts, clock_offset


def _try_capturing(endpoint: Endpoint) -> dict[str, str]:
    """Try PSUBSCRIBE and PSYNC, each on a new connection; return the errors by command."""
    refused = {}
    subscribing = endpoint.new_connection()
    try:
        connect(subscribing)
        for pattern in CHANNEL_PATTERNS:
            execute_command(subscribing, "PSUBSCRIBE", pattern)
    except ResponseError as refusal:
        refused["PSUBSCRIBE"] = str(refusal)
    finally:
        subscribing.disconnect()  # type: ignore[no-untyped-call]
    replicating = endpoint.new_connection()
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


def _refusal_counts(reply: object) -> dict[str, int]:
    """The counts of REFUSALS in INFO errorstats, which Redis has since 6.2."""
    info = _info(reply)
    counts = {name: info.get(f"errorstat_{name}", "").partition("count=")[2] for name in REFUSALS}
    return {name: int(count) for name, count in counts.items() if count.isdigit()}


def _refused_clients(reply: object) -> list[RefusedClient] | None:
    """The entries of ACL LOG; None where it was refused."""
    if not isinstance(reply, list):
        return None
    entries = []
    for row in reply:
        texts = [_text(value) for value in row]
        fields = dict(zip(texts[0::2], texts[1::2], strict=True))
        client = dict(
            word.split("=", 1) for word in fields.get("client-info", "").split() if "=" in word
        )
        entries.append(
            RefusedClient(
                user=fields.get("username", ""),
                reason=fields.get("reason", ""),
                denied=fields.get("object", ""),
                address=client.get("addr", "?").rpartition(":")[0] or "?",
                count=int(fields.get("count", 1)),
                age_seconds=float(fields.get("age-seconds", 0)),
            )
        )
    return entries


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _info(reply: object) -> dict[str, str]:
    lines = _text(reply or b"").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _seconds(reply: object) -> float | None:
    if not isinstance(reply, list):
        return None
    seconds, microseconds = reply
    return int(seconds) + int(microseconds) / 1_000_000
