"""The causes of capture gaps, in words that fit into a table: ``docs/operations.md#gaps``."""

from collections.abc import Mapping
from typing import Final

CAUSES: Final[Mapping[str, str]] = {
    "redis_unreachable": "no access to Redis",
    "redis_restarted": "Redis restarted",
    "failover": "another Redis took over",
    "backlog_overrun": "Redis' backlog too short",
    "disconnected": "connection lost",
    "resubscribed": "a proxy reconnected",
    "overrun": "messages came too fast",
    "collector_restarted": "collector did not run",
    "mode_changed": "capture mode changed",
    "disk_full": "disk full",
    "another_redis": "was at another Redis",
    "spool_damaged": "spool damaged",
    "spool_lost": "spool lost",
    "spool_pruned": "spool too short",
}


def cause_in_words(cause: str) -> str:
    """A cause for people; of a later version it is its own word."""
    return CAUSES.get(cause, cause.replace("_", " "))
