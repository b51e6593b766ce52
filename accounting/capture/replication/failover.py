"""FAILOVER: a collector can't be promoted, and no server must wait for that.

``FAILOVER`` promotes a replica whose acknowledged offset equals the master's; ``replica_acks``
holds one byte back, so a collector never qualifies. But a collector counts as a replica, so that a
master without any other accepts the command, and then blocks every PUBLISH while it waits. Nothing
but ``FAILOVER ABORT`` ends that: no replica can attach meanwhile
(``docs/coturn.md#failover-command``).
"""

import structlog
from redis.connection import AbstractConnection
from redis.exceptions import ResponseError

from accounting.capture.redis.connection import ServerInfo, execute_command

log = structlog.get_logger()


def is_hopeless(server: ServerInfo) -> bool:
    """Whether the server waits for a failover that can't happen.

    Either only collectors are attached, or the server already follows port 0, which is a collector:
    ``FAILOVER TO`` with FORCE does that, and a collector that acknowledged the exact offset.
    """
    match server.failover_state:
        case "waiting-for-sync":
            return not server.has_real_replica
        case "failover-in-progress":
            return server.master_port == "0"
    return False


class FailoverGuard:
    """Aborts a hopeless FAILOVER; logs what to do when this user may not."""

    def __init__(self) -> None:
        self._was_refused = False

    def abort_if_hopeless(self, connection: AbstractConnection, server: ServerInfo) -> bool:
        """Abort a hopeless failover; return whether there was one, and it is aborted."""
        if not is_hopeless(server):
            self._was_refused = False
            return False
        try:
            execute_command(connection, "FAILOVER", "ABORT")
        except ResponseError as error:
            if "No failover in progress" in str(error):
                return False
            if not self._was_refused:
                log.error(
                    "Redis waits for a failover that can't happen, and blocks every PUBLISH",
                    reason=f"a collector can't be promoted; Redis refuses FAILOVER ABORT: {error}",
                    advice="run FAILOVER ABORT, and grant +failover|abort to this user",
                )
            self._was_refused = True
            return False
        log.error(
            "aborted a FAILOVER of Redis that could not happen",
            reason="no replica but this collector is attached, and a collector can't be promoted",
        )
        return True
