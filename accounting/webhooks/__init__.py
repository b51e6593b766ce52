"""Webhooks: the feed, delivered to other people's servers.

In: the numbered events of the feed. Out: HTTP requests, each signed, and a cursor for each
endpoint. Invariants: each event that an endpoint asked for is delivered at least once under
the same id, and in order unless it asks for several requests at a time; no endpoint waits for
another; two schedulers never deliver to one endpoint at a time.

- ``message``: a request, its answer, and what the answer means for each event.
- ``formats``: how events become requests; ``format_choice``: that of an endpoint.
- ``endpoint``, ``endpoints``: an endpoint, and its row, which an operator adds and changes.
- ``customers``: whom an engine bills.
- ``delivery``: the job ``webhooks``: a thread for each endpoint that is due.
- ``endpoint_delivery``: reads, sends and records for one of them. ``position``: what is done;
  ``answer``: what an answer means; ``retries``: when a failed request is sent again.
- ``leases``: SQL of the delivery: leases, and the positions that are written under them.
- ``attempts``, ``refusals``: the record of requests, and of events that were not taken.
- ``client``: sends to one endpoint, by ``signing`` and ``transport``; ``quoting``: its answers.
- ``send_test_event``: one event that is sent at once, to see the answer.
- ``transport``: sends a request; ``outbound_policy``: where it may go; ``target_url``: its URL.
"""
