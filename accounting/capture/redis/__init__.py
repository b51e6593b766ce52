"""What both sources share: the way to a server, and bytes off its socket.

Nothing here interprets a message, stores one or retries. Errors and logs never contain the URL.

- ``address`` finds the server, directly or through sentinels
- ``connection`` connects, runs single commands and reads INFO
- ``replies`` parses the replies to them, and ``arguments`` skips what is not kept of a stream:
  every length and count that a server sends has a bound
- ``receiver`` is the thread that reads the socket into bounded memory
- ``batching`` cuts what a stream yields into batches
- ``key_scan`` looks for coturn's status keys, on a connection of its own
"""
