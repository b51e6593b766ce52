"""Capture: what coturn publishes to Redis comes in, a durable spool file per source comes out.

The invariant: every message published since capture began is in the spool, or was published within
a recorded gap. A checkpoint is a time up to which this is proven.

- ``collector`` runs a source into the spool and records gaps and epochs
- ``source`` is the interface that both sources implement; ``source_selection`` picks one
- ``replication`` reads the replication stream of a master; a reconnect resumes it without a gap
- ``pubsub`` subscribes; every disconnect is a gap
- ``redis`` has what both share: addresses, connections, the receiving thread, batches, the key scan
- ``spool`` is the file: writing, reading, pruning, takeover, status
"""
