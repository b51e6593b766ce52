"""Usage accounting for coturn. The path of a message, and the package of each step:

coturn -> Redis -> capture     receives messages and appends them, unparsed, to a spool on disk
                -> ingest      parses the spool and loads reports and position in one transaction
                -> sessions    folds reports into sessions, and derives usage deltas
                -> usage       rolls deltas up to hours, days and months of users and realms
                -> billing     closes periods with statements; posts late usage as adjustments
                -> feed        numbers the events for the billing worker
                -> reporting, export   what people and programs read: views, files

``domain`` has the pure rules of all these. ``identities`` holds users, realms and their rules;
``sources`` one row per collector. ``audit`` recomputes the books from the reports. ``ops`` runs the
processes and jobs and monitors them; ``cli`` has the commands. ``db``, ``config``, ``embedded`` and
``simulator`` are infrastructure. pyproject.toml lists which package may import which.
"""
