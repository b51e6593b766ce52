"""From Redis to the spool: everything that happens to a message before it is parsed.

`source` says what a source of messages is; `subscriber` is the one that subscribes, `replication`
the one that follows the stream of a master, `choice` picks; `spool` keeps what they yield, in a
`spool_file`, `pruning` lets go of it; `collector` runs the source and records the gaps, `adoption`
goes on for another collector.
"""
