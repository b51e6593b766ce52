"""Ingest: messages from a collector's spool to reports and sessions in Postgres, each once.

Comes in: a spool's messages, gaps and key sightings. Goes out: rows of ``reports``,
``rejected_messages``, ``key_sightings``, ``capture_gaps`` and ``message_counts``. Invariant: the
rows, what settling makes of them, and the source's position are written in one transaction, so that
a message is counted once, or lies within a recorded gap.

``loader``: prepares batches, one while ``batch`` commits the one before; ``load_loop`` repeats it.
``load_position``: maps the database's position to the spool's. ``row_encoder``: messages to rows
and sessions. ``report_rows``: the rows' binary format. ``report_queries``: inserts them.
``key_sightings``: status keys that a scan found.
``message_counts``: counts of outcomes. ``partitions``: creates the reports' partitions ahead.
``source_lease``: which collector works.
"""
