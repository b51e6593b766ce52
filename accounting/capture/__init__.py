"""From Redis to the spool: everything that happens to a message before it is parsed.

`source` says what a source of messages is, `subscriber` is the one that subscribes, `spool` keeps
what it yields, `collector` runs them and records the gaps.
"""
