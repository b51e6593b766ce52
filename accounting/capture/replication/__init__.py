"""Capture by replication: a master's stream comes in, coturn's messages go out with positions.

We act as a replica: PSYNC, then the stream of all commands. A position is an offset of the stream.
While the server's backlog reaches back to the stored position, a reconnect resumes there, without a
gap. The stream shows every write to that server, secrets among them: bytes that are not coturn's
are never stored, logged or put into an error.

INFO lists us as a replica, and WAIT and ``min-replicas-to-write`` count us. We can't be promoted.

- ``source`` opens both connections of a stream
- ``handshake`` checks the server and sends REPLCONF and PSYNC
- ``protocol`` parses the reply to PSYNC, the snapshot and the commands, as bytes
- ``stream`` yields batches and derives checkpoints from offsets
- ``offset_poller`` asks the server for its offset, every second
- ``replica_acks`` acknowledges what is durable
- ``failover`` ends a FAILOVER that would wait for us
- ``backlog_times`` estimates the times of messages from the backlog
"""
