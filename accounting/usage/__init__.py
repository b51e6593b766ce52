"""Usage of users and realms by hour, day and month, rolled up from the changes of sessions.

In: the queued ``usage_deltas`` and ``peak_deltas`` that settling appends. Out: ``user_usage_*`` and
``realm_usage_*``, and the closed periods that changed. Invariant: hours = days = months = confirmed
sessions, exactly, whenever nothing is queued, as the transaction that adds a delta deletes it.

``rollup`` is the job, ``fold_hours`` adds finished hours to the days and months of users,
``counted_usage`` writes them to the feed, ``peaks`` counts concurrent
sessions, ``rollup_queries`` reads and writes the tables.
"""
