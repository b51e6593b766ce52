"""Reports become sessions: the fold's driver, the tables of sessions, and what settling changed.

In: reports and key sightings in order of position. Out: ``sessions``, the hours of sessions that
span more than one, queued usage and peak deltas for the roll-up, and ``session.ended`` events.
Invariant: any batching of the same reports gives the same rows, and the settle watermark moves in
the transaction that writes them.

``settler`` folds evidence and expires sessions, for the loader and for the job ``settle``;
``open_sessions`` keeps them in memory, ``session_changes`` packs what a batch changed and
``write_changes`` writes it. ``session_rows`` and
``session_queries`` read and write sessions, ``session_hour_queries`` their hours, ``usage_deltas``
queues changes, ``relay_threads`` records the last report of each relay thread, ``describe_gaps``
says what became of the sessions that span a gap.
"""
