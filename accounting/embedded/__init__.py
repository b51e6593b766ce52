"""The servers that the wheels carry, run as children of this process: Postgres and Valkey.

Owns their processes, their directories below the data directory and the locks that keep one owner
for each. Must speak no SQL and hold no data of the service: it hands out addresses. Both servers
stop with the process that started them, even when that one is killed.
"""

from accounting.embedded.postgres_server import (
    DATABASE,
    EmbeddedPostgres,
    attach_or_start,
    run_postgres,
    running_postgres,
)
from accounting.embedded.valkey_server import EmbeddedValkey, run_valkey, running_valkey

__all__ = [
    "DATABASE",
    "EmbeddedPostgres",
    "EmbeddedValkey",
    "attach_or_start",
    "run_postgres",
    "run_valkey",
    "running_postgres",
    "running_valkey",
]
