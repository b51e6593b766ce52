"""The identity of a Redis: its run id, its replication history, its cluster.

A server's run id changes with every start. All servers of one replication group have the same
replication id, and what is published on the master reaches every one of them. After a failover the
new master begins a history of its own and names the one that it continues. The nodes of a cluster
pass on to each other what is published, and share no history.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Final, Self

ID_CHARACTERS: Final = 40
MAX_NODES: Final = 1_000
"""Nodes of a cluster that are compared; Redis itself supports about so many."""


def valid_id(text: str) -> str:
    """An id of Redis, 40 hexadecimal digits; '' for anything else, such as the zeros of no id."""
    is_id = len(text) == ID_CHARACTERS and set(text) <= set("0123456789abcdef")
    return text if is_id and text.strip("0") else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """The ids of a server; '' where it does not give one. ``address`` is only shown.

    A master's replication id also changes when its first replica attaches, a replica's only with
    the history that it follows.

    ``previous_replication_id``: of the history that the server's own one continues.
    """

    address: str = ""
    run_id: str = ""
    replication_id: str = ""
    previous_replication_id: str = ""
    node_ids: tuple[str, ...] = ()
    is_replica: bool = False

    @property
    def histories(self) -> frozenset[str]:
        """The ids by which two collectors at one stream of messages find each other."""
        named = [("run", self.run_id), ("history", self.replication_id)]
        named += [("node", node_id) for node_id in self.node_ids]
        return frozenset(f"{kind} {value}" for kind, value in named if value)

    @property
    def claims(self) -> frozenset[str]:
        """The histories that a source claims, of those that it must not share.

        A replica's collector does not claim the history of the master for itself, so that the
        master's collector is never the one that is refused.
        """
        if not self.is_replica:
            return self.histories
        own = self.histories - {f"history {self.replication_id}"}
        return own | ({f"following {self.replication_id}"} if self.replication_id else frozenset())

    @property
    def previous_history(self) -> str:
        """The history that the server's own one continues, as in ``histories``; '' without one."""
        return f"history {self.previous_replication_id}" if self.previous_replication_id else ""

    def shares_history(self, other: Self) -> bool:
        """Whether both are one server, of one replication group, of one cluster, or a failover."""
        return bool(
            self.histories & other.histories
            or self.previous_history in other.histories
            or other.previous_history in self.histories
            or (self.previous_history and self.previous_history == other.previous_history)
        )

    def __str__(self) -> str:
        run_id = f"run id {self.run_id[:8]}" if self.run_id else ""
        return ", ".join(part for part in (self.address, run_id) if part) or "unknown"

    def to_text(self) -> str:
        """As text for a column; '' for an unknown server."""
        return json.dumps(asdict(self), sort_keys=True) if self.histories else ""

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The identity that :meth:`to_text` wrote."""
        identity = cls(**_fields(text))
        return replace(identity, node_ids=tuple(identity.node_ids))


@lru_cache(maxsize=256)
def _fields(text: str) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = json.loads(text or "{}")
    return fields


UNKNOWN_SERVER: Final = ServerIdentity()


def is_other_history(old: ServerIdentity, new: ServerIdentity) -> bool:
    """Whether the server of a subscription has since come under another master, or become one."""
    if not (old.replication_id and new.replication_id):
        return False
    return old.is_replica != new.is_replica or (
        new.is_replica and old.replication_id != new.replication_id
    )


def cluster_node_ids(lines: Iterable[str]) -> tuple[str, ...]:
    """The node ids in the reply to CLUSTER NODES."""
    ids = (valid_id(line.partition(" ")[0]) for line in lines)
    return tuple(sorted(node_id for node_id in ids if node_id)[:MAX_NODES])
