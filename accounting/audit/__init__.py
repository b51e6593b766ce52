"""Audit: recomputes the books from the reports, compares, rebuilds, and drops old reports.

In: reports, key sightings and gaps as they are stored, and the stored books. Out: differences, the
rows that a rebuild replaces, proofs of closed periods, and what dropped reports leave. Invariant:
whatever order or batches the jobs worked in, the stored books are what the reports give; reports
are dropped only when nothing billed depends on them any more, or can be recomputed without them.

- ``verify``, ``rebuild``, ``trace``: the commands; ``snapshot``: the moment they compare at.
- ``reconcile``: compares sessions with coturn's log; ``log_session_queries``.
- ``retention``: drops reports, a part of the job ``retain``; ``retention_queries``,
  ``finalized_queries``. ``pruning``: the other part, deletes what was never billed.
- ``evidence_queries``: reads the evidence, key by key, up to a cutoff.
- ``recompute``: folds evidence into sessions, also as they stood at ``checkpoints``.
- ``recompute_books``: fills the ``recomputed_tables``.
- ``comparison``, ``statement_check``, ``limit_check``: find what differs; ``differences`` names it.
- ``rebuild_queries``, ``proof_records``: write.
"""
