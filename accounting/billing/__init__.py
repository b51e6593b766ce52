"""Billing: periods, their statements, and the adjustments of closed periods.

In: the hours of ``usage``, the realm rules, and how far each source is settled. Out: rows of
``periods``, ``statements`` and ``adjustments``, and an event in the feed's outbox for each close
and adjustment. Invariant, for each user of a closed period: statement + adjustments of late usage
= the usage of its hours. A closed period never changes; triggers enforce it.

- ``close_period``: decides when a period closes, and closes it; the job ``close``.
- ``adjust``: posts late usage (the job ``adjust``) and manual adjustments.
- ``period_queries``, ``statement_queries``, ``adjustment_queries``: SQL, by noun.

Every writer here holds the lock ``rollup``.
"""
