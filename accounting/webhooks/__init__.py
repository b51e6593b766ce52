"""Webhooks: the feed, delivered to other people's servers.

In: the numbered events of the feed. Out: HTTP requests, each signed, and a cursor for each
endpoint. Invariants: each event that an endpoint asked for is delivered at least once, in order,
under the same id; no endpoint waits for another; two schedulers never deliver to one endpoint at
a time.

- ``message``: a request, its answer, and what the answer means for each event.
- ``formats``: how events become requests; ``format_choice``: that of an endpoint.
- ``endpoint``, ``endpoints``: an endpoint, and its row, which an operator adds and changes.
- ``delivery``: the job ``webhooks``: a thread for each endpoint that is due.
- ``endpoint_delivery``: reads, sends and records for one of them; ``progress``: what is done.
- ``positions``: SQL of the delivery: leases, positions, attempts.
- ``client``: sends to one endpoint, by ``signing`` and ``outbound``.
- ``trial``: one event that is sent at once, to see the answer.
- ``outbound``: sends a request; limits where it may go and what its server may answer.
"""
