"""The spool: raw messages, durable on the local disk before anything else happens to them.

The collector writes it, the loader reads and prunes it; each is a process of its own. A position is
(epoch, position): positions rise strictly within an epoch, epochs rise, and receipt times never
fall along both. All times are whole microseconds since the Unix epoch, UTC.

- ``spool`` is what both processes call
- ``file`` is the SQLite database below it: format, transactions, errors
- ``messages`` stores and finds messages there, in chunks
- ``chunks`` encodes messages as a chunk, with a checksum
- ``upgrade`` takes over files of earlier formats
- ``records`` has the values that go in and come out
- ``pruning`` deletes old loaded messages
- ``takeover`` prepares a spool to continue for another collector
- ``collector_lock`` allows one collector per spool
- ``status`` reads a spool from outside, for metrics and ``doctor``
"""
