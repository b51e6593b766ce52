"""Short waits: what the service waits for is the same, it only looks more often.

They are what makes a stop or a restart take seconds while nothing goes on. No test is about their
lengths.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Final

CAPTURE: Final[Mapping[str, float]] = {
    "accounting.capture.redis.receiver.READ_TIMEOUT_SECONDS": 0.02,
    "accounting.capture.redis.batching.IDLE_SECONDS": 0.02,
    "accounting.capture.collector.MIN_RETRY_SECONDS": 0.02,
}
SERVICE: Final[Mapping[str, float]] = {
    "accounting.ops.processes.SUPERVISE_SECONDS": 0.05,
    "accounting.ops.processes.MIN_RESTART_SECONDS": 0.1,
    "accounting.ops.collector_process.STANDBY_POLL_SECONDS": 0.05,
    "accounting.ops.scheduler.OVERDUE_SECONDS": 0.2,
    "accounting.ops.scheduler.RETRY_SECONDS": 0.2,
    "accounting.ingest.load_loop.MIN_RETRY_SECONDS": 0.05,
    "accounting.db.notification.MIN_RETRY_SECONDS": 0.1,
}

# The collector wakes the loader for messages; that its times were corrected it does not say.
CORRECTED: Final[Mapping[str, float]] = {"accounting.ingest.load_loop.IDLE_SECONDS": 0.2}


def shorten(waits: Mapping[str, float]) -> None:
    """Shorten these waits, until this process ends."""
    for name, seconds in waits.items():
        module, _, variable = name.rpartition(".")
        setattr(import_module(module), variable, seconds)
