"""Capture by subscription: PSUBSCRIBE comes in, batches with checkpoints go out.

Redis delivers at most once and a subscription can't resume, so every disconnect is a gap. A
checkpoint is the time of a PING whose reply has come: Redis replies in order with the messages.

- ``source`` subscribes
- ``protocol`` parses messages and replies, as bytes
- ``pings`` sends PINGs and matches their replies
"""
