"""The judgement on a Redis or Valkey: what it must be set to, so that no event of coturn is lost.

Pure: facts in, findings out. The reasons are coturn's habits (it reconnects only at the next event,
and loses that one) and the two ways of capturing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from accounting.capture.pubsub.source import CHANNEL_PATTERNS
from accounting.ops.doctor.findings import Finding, error, format_bytes, ok, warning

CaptureMode = Literal["auto", "replication", "subscribe"]

COMPONENT: Final = "redis"
MIN_VERSIONS: Final = {"Redis": (6, 0), "Valkey": (7, 2)}
BRIDGED_OUTAGE_SECONDS: Final = 600
"""How long an outage of the collector the backlog ought to hold."""
CLOSE_STREAM_BYTES: Final = 1_300
"""What the stream carries when one allocation closes."""
CLOSE_PUBSUB_BYTES: Final = 850
"""What a subscriber is sent then."""
MIN_BACKLOG_BYTES: Final = 8 << 20
MIN_BACKLOG_TTL_SECONDS: Final = 3600
MAX_KEEPALIVE_SECONDS: Final = 60
MIN_PUBSUB_LIMIT_BYTES: Final = 32 << 20
MEGABYTE: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisFacts:
    """What a probe saw. ``refused``: the server's words, by command that this user may not use.

    ``settings``: what CONFIG GET told, or INFO in its stead. ``stream_bytes_per_second``: None
    where nothing makes the stream move.
    """

    address: str
    kind: Literal["Redis", "Valkey"] = "Redis"
    version: str = ""
    role: str = ""
    is_cluster: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    stream_bytes_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreachable:
    """Why there are no facts, and what to do."""

    reason: str
    advice: str


def check_redis(
    facts: RedisFacts | Unreachable, *, mode: CaptureMode, live_sessions: int
) -> Iterator[Finding]:
    """Judge a server for capturing in ``mode``, with so many sessions living at once."""
    if isinstance(facts, Unreachable):
        yield error(COMPONENT, "reachable", facts.reason, facts.advice)
        return
    yield ok(COMPONENT, "reachable", facts.address)
    yield _version(facts)
    yield _mode(facts, mode)
    yield from _rights(facts)
    for judged in (_timeout(facts), _keepalive(facts)):
        if judged is not None:
            yield judged
    replicates = mode != "subscribe" and _replication_obstacle(facts)[0] is None
    if replicates:
        yield from _backlog(facts, live_sessions)
        yield from _replica_buffer(facts)
    else:
        yield from _pubsub_buffer(facts, live_sessions)
    if "CONFIG" in facts.refused:
        yield warning(
            COMPONENT,
            "settings",
            f"this user may not look at them ({facts.refused['CONFIG']})",
            "see that redis.conf has `timeout 0` and `tcp-keepalive 60`, or grant +config|get "
            "while doctor runs; a managed service has them in its console",
        )


def _version(facts: RedisFacts) -> Finding:
    oldest = MIN_VERSIONS[facts.kind]
    seen = f"{facts.kind} {facts.version or 'of unknown version'}"
    parts = tuple(int(part) for part in facts.version.split(".")[:2] if part.isdigit())
    if not parts:
        return warning(COMPONENT, "version", seen, "grant +info to this user")
    if parts < oldest:
        wanted = ".".join(map(str, oldest))
        return error(COMPONENT, "version", seen, f"use {facts.kind} {wanted} or newer")
    return ok(COMPONENT, "version", seen)


def _replication_obstacle(facts: RedisFacts) -> tuple[str | None, str]:
    """Why there is no replication to be had, if so, and what would mend that."""
    if facts.is_cluster:
        return (
            "this is a cluster, whose nodes replicate only to each other",
            "give coturn a Redis that is no cluster",
        )
    if facts.role == "slave":
        return (
            "this is a replica, and what coturn publishes is in the stream of its master",
            "set ACCOUNTING_REDIS_URL to the master, or to the sentinels that know it",
        )
    refusal = facts.refused.get("PSYNC")
    reason = None if refusal is None else f"the server refuses PSYNC ({refusal})"
    return reason, "grant +psync +replconf +ping +info to this user"


def _mode(facts: RedisFacts, mode: CaptureMode) -> Finding:
    reason, to_replicate = _replication_obstacle(facts)
    if mode != "subscribe" and reason is None:
        return ok(COMPONENT, "mode", f"replication can be used (ACCOUNTING_CAPTURE={mode})")
    if mode == "replication" and reason is not None:
        return error(
            COMPONENT,
            "mode",
            f"replication can't be used: {reason}",
            f"{to_replicate}, or set ACCOUNTING_CAPTURE=subscribe",
        )
    if "PSUBSCRIBE" in facts.refused:
        return error(
            COMPONENT,
            "mode",
            f"neither way of capturing is allowed ({facts.refused['PSUBSCRIBE']})"
            if reason is not None
            else f"the server refuses PSUBSCRIBE ({facts.refused['PSUBSCRIBE']})",
            "grant +psync +replconf +ping +info; or +psubscribe +ping +info, and the channels by "
            "the very patterns: "
            + " ".join(f"&{pattern.decode()}" for pattern in CHANNEL_PATTERNS),
        )
    if reason is None:
        return warning(
            COMPONENT,
            "mode",
            "subscription is set, and replication would be possible",
            "set ACCOUNTING_CAPTURE=replication: it loses nothing that the backlog holds",
        )
    if mode == "subscribe":
        return ok(COMPONENT, "mode", f"subscription, as set; {reason}")
    return warning(
        COMPONENT,
        "mode",
        f"subscription, which hears every event at most once: {reason}",
        f"if this server is yours, {to_replicate}; every disconnect is a gap until then",
    )


def _rights(facts: RedisFacts) -> Iterator[Finding]:
    wanted = {
        "INFO": "a restart of Redis can't be seen",
        "SCAN": "after a gap no status key can vouch for a session",
        "OBJECT": "after a gap no status key can vouch for a session",
        "SELECT": "after a gap no status key in another database than 0 can vouch for a session",
    }
    lacking = {name: loss for name, loss in wanted.items() if name in facts.refused}
    if not lacking:
        yield ok(COMPONENT, "rights", "this user may do all that is needed")
    for name, loss in lacking.items():
        right = "object|idletime" if name == "OBJECT" else name.lower()
        yield warning(
            COMPONENT,
            "rights",
            f"{name} is refused ({facts.refused[name]}): {loss}",
            f"grant +{right} to this user",
        )
    policy = facts.settings.get("maxmemory-policy", "")
    if "lfu" in policy:
        yield warning(
            COMPONENT,
            "key scan",
            f"maxmemory-policy {policy}: Redis does not know how long a key was idle, so after a "
            "gap no status key can vouch for a session",
            "use a maxmemory-policy that is not LFU",
        )


def _timeout(facts: RedisFacts) -> Finding | None:
    value = facts.settings.get("timeout")
    if value is None:
        return None
    if value != "0":
        return error(
            COMPONENT,
            "timeout",
            f"timeout {value}: Redis closes connections that are idle for {value} s, and coturn "
            "loses the event at which it notices",
            "CONFIG SET timeout 0, and the same in redis.conf",
        )
    return ok(COMPONENT, "timeout", "timeout 0")


def _keepalive(facts: RedisFacts) -> Finding | None:
    value = facts.settings.get("tcp-keepalive")
    if value is None:
        return None
    if not 0 < int(value) <= MAX_KEEPALIVE_SECONDS:
        return warning(
            COMPONENT,
            "tcp-keepalive",
            f"tcp-keepalive {value}: a firewall may drop coturn's idle connection before",
            "CONFIG SET tcp-keepalive 60, and the same in redis.conf",
        )
    return ok(COMPONENT, "tcp-keepalive", f"tcp-keepalive {value}")


def needed_backlog_bytes(bytes_per_second: float, live_sessions: int) -> int:
    """Bytes of backlog that bridge an outage of BRIDGED_SECONDS in which all sessions close."""
    needed = BRIDGED_OUTAGE_SECONDS * bytes_per_second + CLOSE_STREAM_BYTES * live_sessions
    return max(MIN_BACKLOG_BYTES, round(needed))


def _backlog(facts: RedisFacts, live_sessions: int) -> Iterator[Finding]:
    value = facts.settings.get("repl-backlog-size")
    if value is not None:
        rate = facts.stream_bytes_per_second
        have, need = int(value), needed_backlog_bytes(rate or 0, live_sessions)
        moving = "at rest" if not rate else f"at {format_bytes(rate)}/s"
        seen = (
            f"repl-backlog-size {format_bytes(have)}; the stream is {moving}, "
            f"{live_sessions} sessions live"
        )
        if have < need:
            megabytes = 1 << (-(-need // MEGABYTE) - 1).bit_length()
            yield warning(
                COMPONENT,
                "backlog",
                f"{seen}: too little for an outage of {BRIDGED_OUTAGE_SECONDS // 60} minutes "
                f"({format_bytes(need)})",
                f"CONFIG SET repl-backlog-size {megabytes}mb, and the same in redis.conf",
            )
        else:
            yield ok(COMPONENT, "backlog", seen)
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
    """The hard limit of a class of clients, 0 for none; None when it isn't known.

    The setting is `class hard soft seconds` over and over.
    """
    words = facts.settings.get("client-output-buffer-limit", "").split()
    limits = {words[at]: int(words[at + 1]) for at in range(0, len(words) - 3, 4)}
    return next((limits[name] for name in names if name in limits), None)


def _replica_buffer(facts: RedisFacts) -> Iterator[Finding]:
    limit = _hard_limit(facts, "replica", "slave")
    if limit is None:
        return
    backlog = int(facts.settings.get("repl-backlog-size", 0))
    check, seen = "replica buffer", f"client-output-buffer-limit replica {format_bytes(limit)}"
    least = max(backlog, 64 * MEGABYTE)
    if 0 < limit < least:
        yield warning(
            COMPONENT,
            check,
            f"{seen}: a collector that hangs for a moment is cut off",
            "CONFIG SET client-output-buffer-limit 'replica 256mb 64mb 60', and more than "
            "repl-backlog-size",
        )
    else:
        yield ok(COMPONENT, check, seen if limit else f"{seen} (none)")


def _pubsub_buffer(facts: RedisFacts, live_sessions: int) -> Iterator[Finding]:
    limit = _hard_limit(facts, "pubsub")
    if limit is None:
        return
    check, seen = "pubsub buffer", f"client-output-buffer-limit pubsub {format_bytes(limit)}"
    need = max(MIN_PUBSUB_LIMIT_BYTES, CLOSE_PUBSUB_BYTES * live_sessions)
    if 0 < limit < need:
        yield warning(
            COMPONENT,
            check,
            f"{seen}: a close of {limit // CLOSE_PUBSUB_BYTES} allocations at once can cut the "
            f"collector off; {live_sessions} live",
            "CONFIG SET client-output-buffer-limit 'pubsub 256mb 64mb 60', and the same in "
            "redis.conf",
        )
    else:
        yield ok(COMPONENT, check, seen if limit else f"{seen} (none)")
