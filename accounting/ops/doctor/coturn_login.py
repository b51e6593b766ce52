"""The check of coturn's login at Redis, by what Redis shows of refused clients.

coturn gives a password and no user name, so it is Redis' user ``default``. When Redis refuses it,
coturn goes on and every event is lost; it logs one line, and only at its start.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from accounting.ops.doctor.findings import Finding, error, ok, warning
from accounting.ops.monitoring.health import format_duration

COTURN_USER: Final = "default"
RECENT_SECONDS: Final = 600.0
REFUSALS: Final = ("NOAUTH", "WRONGPASS")
"""The errors of INFO errorstats: a command without a login, and a wrong one."""
ADVICE: Final = (
    "compare password= in coturn's redis-statsdb with the password of Redis' user default: coturn "
    'can\'t name another user. See "How coturn logs in" in docs/redis.md of the project'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedClient:
    """An entry of ACL LOG. ``reason``: auth, command, key or channel; ``denied``: which one."""

    user: str
    reason: str
    denied: str
    address: str
    count: int
    age_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalFacts:
    """What Redis shows of clients that it refuses.

    ``log``: None where this user may not read ACL LOG. ``has_counts``: whether the server has those
    of INFO errorstats, which it leaves out as long as they are zero. ``totals``: by error, since
    the server started. ``recent``: how many of them came while doctor looked.
    """

    log: Sequence[RefusedClient] | None = None
    has_counts: bool = True
    totals: Mapping[str, int] = field(default_factory=dict)
    recent: Mapping[str, int] = field(default_factory=dict)


NO_REFUSALS: Final = RefusalFacts()


def check_coturn_login(
    component: str, facts: RefusalFacts, *, has_events: bool
) -> Iterator[Finding]:
    """Check whether Redis refuses what coturn sends. ``has_events``: some have arrived ever."""
    check = "coturn"
    entries = [
        entry
        for entry in facts.log or ()
        if entry.user == COTURN_USER and entry.age_seconds < RECENT_SECONDS
    ]
    for entry in entries:
        times = "once" if entry.count == 1 else f"{entry.count:,} times"
        last = f"the last {format_duration(entry.age_seconds)} ago"
        if entry.reason == "auth":
            observed = f"a client at {entry.address} failed to log in as default {times}, {last}"
            yield error(component, check, observed, ADVICE)
        else:
            yield error(
                component,
                check,
                f"user default was denied {entry.reason} {entry.denied!r} {times}, {last}, from "
                f"{entry.address}",
                'grant coturn\'s user its rights: see "How coturn logs in" in docs/redis.md '
                "of the project",
            )
    if entries:
        return
    if any(facts.recent.values()):
        yield error(
            component,
            check,
            f"clients are being refused: {_counts(facts.recent)} within a second",
            ADVICE,
        )
    elif any(facts.totals.values()) and not has_events:
        yield warning(
            component,
            check,
            f"clients were refused since Redis started ({_counts(facts.totals)}), and not a "
            "single event has arrived",
            ADVICE,
        )
    elif facts.log is None and not facts.has_counts:
        observed = "whether clients are refused can't be seen without the right to acl|log"
        yield ok(component, check, observed)
    else:
        yield ok(component, check, "no client is refused")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
