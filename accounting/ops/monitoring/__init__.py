"""Monitoring: a snapshot of the running service, served as metrics and as health.

In: the spool and the database, both read-only. Out: ``/metrics``, ``/healthz``. Invariant: reading
a snapshot changes nothing, ends in bounded time, and imports no job.

``snapshot``        reads the state of the spool and of the database, at most once a second
``status_queries``  the queries of the database's state, and their result types
``health``          evaluates a snapshot: problems and warnings
``metrics``         a snapshot in the format of Prometheus
``server``          the HTTP server of both
"""
