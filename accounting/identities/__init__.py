"""Identities: the names of realms and users, the keys that replace them, and the realms' rules.

Comes in: realm and username of each message. Goes out: ``realm_id``, ``username_key`` and
``user_key``, by which all other tables refer to them. Invariant: names of users are only in
``users``, ``usernames`` and rejected messages, so that erasing a name changes no figure.

``identity_resolver``: names to keys, for the loader. ``realm_queries``: realms and their rules.
``realm_rules``: changes the rules of a realm. ``bucket_queries``: the bounds of hours, days and
months by those rules. ``user_queries``: finds users. ``erase`` and ``erasure_queries``: erase a
user's names. ``writer_locks``: locks out what reads rules and names.
"""
