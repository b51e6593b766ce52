"""Embedded servers: the Postgres and Valkey of the wheels, run as child processes.

In: the data directory. Out: a running server's address. Invariant: one owner process per server;
the server stops when its owner ends, even when the owner is killed.

``postgres_server``, ``valkey_server``  start, find and stop the servers
``postgres_cluster``                    the binaries and the cluster of Postgres
``child``                               a server as a child process
``owner_lock``                          the lock of the one owner
``server_user``                         the user that servers run as when the service is root
"""

from accounting.embedded.postgres_cluster import DATABASE
from accounting.embedded.postgres_server import (
    EmbeddedPostgres,
    attach_or_start,
    has_postgres,
    run_postgres,
    running_postgres,
)
from accounting.embedded.valkey_server import EmbeddedValkey, run_valkey, running_valkey

__all__ = [
    "DATABASE",
    "EmbeddedPostgres",
    "EmbeddedValkey",
    "attach_or_start",
    "has_postgres",
    "run_postgres",
    "run_valkey",
    "running_postgres",
    "running_valkey",
]
