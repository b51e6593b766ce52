"""The page and the HTTP API: what the books say, for browsers and programs. It changes nothing.

In: requests, a token's rights. Out: HTML, JSON, CSV. It reads the views of schema ``reporting``
with the reader's rights, through the room ``reporting``, and nothing else; tokens are in a schema
of their own, reached by functions that the reader may call.

    server     runs it: listens, serves, stops
    app        puts the parts together
    gate       what every request passes: Host, forwarded headers, log-in, headers of the answer
    access/    tokens, browser sessions, and what each may read
    api/       /api/v1: one module per noun; pages of rows by cursor, problems as RFC 9457
    pages/     HTML: one module per page; templates/ and static/ are theirs
"""
