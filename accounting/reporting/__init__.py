"""Reads the views of schema ``reporting``, which are a public contract, with the reader's rights.

In: filters of a command (realm, user, period, times). Out: rows as mappings, named by the columns
of the view. It reads nothing but the views, so each command works for a login that has only the
role ``turn_accounting_reader``.

    view_query     a query, the borders of a span, and the order of a list
    usage_queries, session_queries, billing_queries, view_queries
                   one function per view: filters to a query
    reader         runs a query and streams its rows
    known_names    checks realms and users that a command names
    completeness   says what the books do not have yet
    live           what happens now: live sessions, and the rates of users and realms
    traffic_rates  rates from what was reported within a span
    filters        parses the filters that the command line and the API have in common
    feed_pages     the feed by pages, for readers who keep their own place in it
    view_columns   the columns of the views, with their types and comments
    row_text       rows as JSON and CSV
    statement      a period with its lines, adjustments and gaps
"""
