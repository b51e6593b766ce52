"""Webhooks: the feed, delivered to other people's servers.

In: the numbered events of the feed. Out: HTTP requests, each signed, and a cursor for each
endpoint. Invariants: each event that an endpoint asked for is delivered at least once, in order,
under the same id; no endpoint waits for another; two schedulers never deliver to one endpoint at
a time.

- ``message``: an endpoint, a request, its answer, and what the answer means for each event.
- ``outbound``: sends a request; limits where it may go and what its server may answer.
"""
