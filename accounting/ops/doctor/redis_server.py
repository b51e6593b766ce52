"""The check of a Redis or Valkey: the settings with which no event of coturn is lost.

They follow from coturn, which reconnects only at its next event and loses that one, and from the
two capture modes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from accounting.capture.pubsub.protocol import CHANNEL_PATTERNS
from accounting.domain.server_identity import UNKNOWN_SERVER, ServerIdentity
from accounting.ops.doctor.coturn_login import NO_REFUSALS, RefusalFacts, check_coturn_login
from accounting.ops.doctor.findings import Finding, error, format_bytes, ok, warning
from accounting.plurals import counted

CaptureMode = Literal["auto", "replication", "subscribe"]

COMPONENT: Final = "redis"
MIN_VERSIONS: Final = {"Redis": (6, 0), "Valkey": (7, 2)}
BRIDGED_OUTAGE_SECONDS: Final = 600
"""The backlog should hold the stream of a collector outage of this length."""
CLOSE_STREAM_BYTES: Final = 1_300
"""Bytes in the stream when one allocation closes."""
CLOSE_PUBSUB_BYTES: Final = 850
"""Bytes to a subscriber when one allocation closes."""
MIN_BACKLOG_BYTES: Final = 8 << 20
MIN_BACKLOG_TTL_SECONDS: Final = 3600
MAX_KEEPALIVE_SECONDS: Final = 60
MIN_PUBSUB_LIMIT_BYTES: Final = 32 << 20
MEGABYTE: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisFacts:
    """The facts of a server. ``refused``: the server's error for each command it denies this user.

    ``settings`` come from CONFIG GET, or from INFO where that is refused.
    ``stream_bytes_per_second``: None without a replication stream.
    """

    address: str
    kind: Literal["Redis", "Valkey"] = "Redis"
    version: str = ""
    role: str = ""
    is_cluster: bool = False
    failover_state: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    stream_bytes_per_second: float | None = None
    identity: ServerIdentity = UNKNOWN_SERVER
    refusals: RefusalFacts = NO_REFUSALS


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreachable:
    """Why the server could not be probed, and the advice."""

    reason: str
    advice: str


def check_redis(
    facts: RedisFacts | Unreachable,
    *,
    mode: CaptureMode,
    live_sessions: int,
    has_events: bool = True,
) -> Iterator[Finding]:
    """Check a server for capture in ``mode``, with so many sessions open at a time.

    ``has_events``: whether an event of coturn has ever arrived.
    """
    if isinstance(facts, Unreachable):
        yield error(COMPONENT, "reachable", facts.reason, facts.advice)
        return
    yield ok(COMPONENT, "reachable", facts.address)
    yield _check_version(facts)
    yield _check_mode(facts, mode)
    yield from _check_rights(facts)
    yield from check_coturn_login(COMPONENT, facts.refusals, has_events=has_events)
    if facts.failover_state not in ("", "no-failover"):
        yield error(
            COMPONENT,
            "failover",
            f"the server executes FAILOVER ({facts.failover_state}) and blocks every PUBLISH",
            "if it does not end by itself: FAILOVER ABORT; a collector can't be promoted",
        )
    yield from _check_timeout(facts)
    yield from _check_keepalive(facts)
    replicates = mode != "subscribe" and _replication_obstacle(facts)[0] is None
    if replicates:
        yield from _check_backlog(facts, live_sessions)
        yield from _check_replica_buffer(facts)
    else:
        yield from _check_pubsub_buffer(facts, live_sessions)
    if "CONFIG" in facts.refused:
        yield warning(
            COMPONENT,
            "settings",
            f"this user may not read them ({facts.refused['CONFIG']})",
            "check that redis.conf has `timeout 0` and `tcp-keepalive 60`, or grant +config|get "
            "while doctor runs; a managed service has them in its console",
        )


def version_numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version; empty for an unknown one."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _check_version(facts: RedisFacts) -> Finding:
    min_version = MIN_VERSIONS[facts.kind]
    observed = f"{facts.kind} {facts.version or 'of unknown version'}"
    version = version_numbers(facts.version)
    if not version:
        return warning(COMPONENT, "version", observed, "grant +info to this user")
    if version < min_version:
        wanted = ".".join(map(str, min_version))
        return error(COMPONENT, "version", observed, f"use {facts.kind} {wanted} or newer")
    return ok(COMPONENT, "version", observed)


def _replication_obstacle(facts: RedisFacts) -> tuple[str | None, str]:
    """Why replication is impossible, None when it is possible; and the advice for that case."""
    if facts.is_cluster:
        return (
            "this is a cluster, whose nodes replicate only to each other",
            "give coturn a Redis outside of clusters",
        )
    if facts.role == "slave":
        return (
            "this is a replica, and coturn's messages are in the stream of its master",
            "set ACCOUNTING_REDIS_URL to the master, or to the sentinels that know it",
        )
    refusal = facts.refused.get("PSYNC")
    obstacle = None if refusal is None else f"the server refuses PSYNC ({refusal})"
    return obstacle, "grant +psync +replconf +ping +info to this user"


def _check_mode(facts: RedisFacts, mode: CaptureMode) -> Finding:
    obstacle, advice = _replication_obstacle(facts)
    if mode != "subscribe" and obstacle is None:
        return ok(COMPONENT, "mode", f"replication can be used (ACCOUNTING_CAPTURE={mode})")
    if mode == "replication" and obstacle is not None:
        return error(
            COMPONENT,
            "mode",
            f"replication can't be used: {obstacle}",
            f"{advice}, or set ACCOUNTING_CAPTURE=subscribe",
        )
    if "PSUBSCRIBE" in facts.refused:
        return error(
            COMPONENT,
            "mode",
            f"neither capture mode is allowed ({facts.refused['PSUBSCRIBE']})"
            if obstacle is not None
            else f"the server refuses PSUBSCRIBE ({facts.refused['PSUBSCRIBE']})",
            "grant +psync +replconf +ping +info; or +psubscribe +ping +info, and the channels by "
            "exactly these patterns: "
            + " ".join(f"&{pattern.decode()}" for pattern in CHANNEL_PATTERNS),
        )
    if obstacle is None:
        return warning(
            COMPONENT,
            "mode",
            "subscription is set, but replication is possible",
            "set ACCOUNTING_CAPTURE=replication: it loses nothing that the backlog holds",
        )
    if mode == "subscribe":
        return ok(COMPONENT, "mode", f"subscription, as set; {obstacle}")
    return warning(
        COMPONENT,
        "mode",
        f"subscription, which delivers every event at most once: {obstacle}",
        f"if this server is yours, {advice}; every disconnect is a gap until then",
    )


def _check_rights(facts: RedisFacts) -> Iterator[Finding]:
    consequences = {
        "INFO": "a restart of Redis can't be seen, nor a second source name for this Redis",
        "SCAN": "after a gap no status key can confirm a session",
        "OBJECT": "after a gap no status key can confirm a session",
        "SELECT": "after a gap no status key in another database than 0 can confirm a session",
    }
    missing = {name: text for name, text in consequences.items() if name in facts.refused}
    if not missing:
        yield ok(COMPONENT, "rights", "this user has all that are needed")
    for name, consequence in missing.items():
        right = "object|idletime" if name == "OBJECT" else name.lower()
        yield warning(
            COMPONENT,
            "rights",
            f"{name} is refused ({facts.refused[name]}): {consequence}",
            f"grant +{right} to this user",
        )
    policy = facts.settings.get("maxmemory-policy", "")
    if "lfu" in policy:
        yield warning(
            COMPONENT,
            "key scan",
            f"maxmemory-policy {policy}: Redis does not know how long a key was idle, so after a "
            "gap no status key can confirm a session",
            "use a maxmemory-policy that is not LFU",
        )


def _check_timeout(facts: RedisFacts) -> Iterator[Finding]:
    value = facts.settings.get("timeout")
    if value is None:
        return
    if value != "0":
        yield error(
            COMPONENT,
            "timeout",
            f"timeout {value}: Redis closes connections that are idle for {value} s, and coturn "
            "loses the event at which it notices",
            "CONFIG SET timeout 0, and the same in redis.conf",
        )
    else:
        yield ok(COMPONENT, "timeout", "timeout 0")


def _check_keepalive(facts: RedisFacts) -> Iterator[Finding]:
    value = facts.settings.get("tcp-keepalive")
    if value is None:
        return
    if not 0 < int(value) <= MAX_KEEPALIVE_SECONDS:
        yield warning(
            COMPONENT,
            "tcp-keepalive",
            f"tcp-keepalive {value}: a firewall may drop coturn's idle connection before",
            "CONFIG SET tcp-keepalive 60, and the same in redis.conf",
        )
    else:
        yield ok(COMPONENT, "tcp-keepalive", f"tcp-keepalive {value}")


def needed_backlog_bytes(bytes_per_second: float, live_sessions: int) -> int:
    """The backlog for an outage of BRIDGED_OUTAGE_SECONDS in which all sessions close."""
    needed_bytes = BRIDGED_OUTAGE_SECONDS * bytes_per_second + CLOSE_STREAM_BYTES * live_sessions
    return max(MIN_BACKLOG_BYTES, round(needed_bytes))


def _check_backlog(facts: RedisFacts, live_sessions: int) -> Iterator[Finding]:
    value = facts.settings.get("repl-backlog-size")
    if value is not None:
        rate = facts.stream_bytes_per_second
        size_bytes, needed_bytes = int(value), needed_backlog_bytes(rate or 0, live_sessions)
        activity = "at rest" if not rate else f"at {format_bytes(rate)}/s"
        observed = (
            f"repl-backlog-size {format_bytes(size_bytes)}; the stream is {activity}, "
            f"{counted(live_sessions, 'live session')}"
        )
        if size_bytes < needed_bytes:
            megabytes = 1 << (-(-needed_bytes // MEGABYTE) - 1).bit_length()
            yield warning(
                COMPONENT,
                "backlog",
                f"{observed}: too little for an outage of {BRIDGED_OUTAGE_SECONDS // 60} minutes "
                f"({format_bytes(needed_bytes)})",
                f"CONFIG SET repl-backlog-size {megabytes}mb, and the same in redis.conf",
            )
        else:
            yield ok(COMPONENT, "backlog", observed)
    ttl = facts.settings.get("repl-backlog-ttl")
    if ttl is not None and 0 < int(ttl) < MIN_BACKLOG_TTL_SECONDS:
        yield warning(
            COMPONENT,
            "backlog ttl",
            f"repl-backlog-ttl {ttl}: the backlog is freed so many seconds after its last replica",
            "CONFIG SET repl-backlog-ttl 3600 or 0 (never), and the same in redis.conf",
        )
    elif ttl is not None:
        yield ok(COMPONENT, "backlog ttl", f"repl-backlog-ttl {ttl}")


def _hard_limit(facts: RedisFacts, *names: str) -> int | None:
    """The hard limit of a client class, by its names, 0 for none; None when it isn't known.

    The setting is a sequence of ``class hard soft seconds``.
    """
    words = facts.settings.get("client-output-buffer-limit", "").split()
    limits = dict(zip(words[0::4], map(int, words[1::4]), strict=False))
    return next((limits[name] for name in names if name in limits), None)


def _check_replica_buffer(facts: RedisFacts) -> Iterator[Finding]:
    limit = _hard_limit(facts, "replica", "slave")
    if limit is None:
        return
    backlog = int(facts.settings.get("repl-backlog-size", 0))
    check, observed = "replica buffer", f"client-output-buffer-limit replica {format_bytes(limit)}"
    min_limit = max(backlog, 64 * MEGABYTE)
    if 0 < limit < min_limit:
        yield warning(
            COMPONENT,
            check,
            f"{observed}: a collector that hangs for a moment is disconnected",
            "CONFIG SET client-output-buffer-limit 'replica 256mb 64mb 60', and more than "
            "repl-backlog-size",
        )
    else:
        yield ok(COMPONENT, check, observed if limit else f"{observed} (none)")


def _check_pubsub_buffer(facts: RedisFacts, live_sessions: int) -> Iterator[Finding]:
    limit = _hard_limit(facts, "pubsub")
    if limit is None:
        return
    check, observed = "pubsub buffer", f"client-output-buffer-limit pubsub {format_bytes(limit)}"
    min_limit = max(MIN_PUBSUB_LIMIT_BYTES, CLOSE_PUBSUB_BYTES * live_sessions)
    if 0 < limit < min_limit:
        yield warning(
            COMPONENT,
            check,
            f"{observed}: a close of {counted(limit // CLOSE_PUBSUB_BYTES, 'allocation')} at once "
            f"can disconnect the collector; {live_sessions} live",
            "CONFIG SET client-output-buffer-limit 'pubsub 256mb 64mb 60', and the same in "
            "redis.conf",
        )
    else:
        yield ok(COMPONENT, check, observed if limit else f"{observed} (none)")
