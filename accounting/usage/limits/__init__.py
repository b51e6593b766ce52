"""Limits of usage: events when users or realms reach a share of what they may use.

In: ``limits``, and the usage that the roll-up has just written. Out: ``limit_states``,
``limit_periods``, and the events ``limit.reached`` and ``limit.cleared``, in the transaction of
that usage. Invariant: a threshold is reached exactly where the usage of a bucket is at or above it,
for all buckets that end after their limit was set; each time that it is reached is one event.

``limit_rules`` sets and removes limits, ``evaluation`` finds what was reached, ``limit_queries``
reads and writes the tables.
"""
