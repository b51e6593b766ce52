"""Access to Postgres: connections, locks, binary COPY, named queries, tables and migrations.

In: a libpq URL. Out: transactions, in which each room runs the statements of its own
``queries.sql``. Invariant: a failed connection raises ConnectionLost and nothing else does, so that
callers know when to retry.

``connection``: connections of psycopg and their errors. ``engine``: SQLAlchemy's. ``clock``: the
time that business rules use. ``locks``: locks of the jobs. ``queries``: loads named statements.
``binary_copy``: cursors and COPY in binary format. ``schema``: the private tables. ``migrations``:
creates and upgrades them.
"""
