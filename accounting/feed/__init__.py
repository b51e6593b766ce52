"""The feed: events for billing workers, in one order without holes, delivered at least once.

In: events that other rooms enqueue in the transaction of their cause (``outbox.EVENT_TYPES``).
Out: rows of ``reporting.feed``, which workers read with a cursor for each consumer. Invariant: an
event gets one number, and a reader who has seen a number never misses a smaller one.

- ``outbox``: SQL that enqueues events, and that numbers them; ``session_ended`` packs nearly all.
- ``number_feed``: the job ``feed``; moves the outbox into the feed.
- ``reader``: the feed's SQL over one connection.
- ``client``: :class:`~accounting.feed.client.Feed`, the Python API of a billing worker.
"""
