"""Doctor: examines everything that capture and the books depend on, and gives advice.

In: the settings, and the URLs of Redis and Postgres. Out: findings. Invariant: it changes nothing,
and no finding has a secret or a username.

``run``                                       all probes and checks, in the order of an event's way
``findings``                                  the result type of every check
``redis_probe``, ``postgres_facts``           read facts from a server; only the first uses Redis
``redis_server``, ``postgres_server``         check those facts
``spool_file``, ``flow``, ``clock``           check the spool, the flow of events, and the clocks
"""

from accounting.ops.doctor.findings import Finding, Level
from accounting.ops.doctor.run import examine

__all__ = ["Finding", "Level", "examine"]
