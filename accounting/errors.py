"""The errors of this package: one base, and a narrow class for each thing a caller can act on."""


class AccountingError(Exception):
    """Base of every error raised on purpose. Its text is one line fit for an operator."""


class ConfigurationError(AccountingError):
    """A setting is wrong or missing; the text names it and what was expected. Exit code 2."""


class UsageError(AccountingError):
    """A command was used wrongly (an unknown realm, a bad date). Exit code 2."""


class NotAllowed(ConfigurationError):
    """The database refuses this user; the text says which role may do it. Exit code 2."""


class NotYet(AccountingError):
    """What was asked for is not there yet but will be. Exit code 3."""


class SpoolError(AccountingError):
    """The spool on the local disk can't be written or read: full, damaged, or of another source."""


class SpoolDiskError(SpoolError):
    """The disk does not take what is to be spooled: full, beyond a quota, or failing."""


class ServerError(AccountingError):
    """A server of our own did not start or stop; the text holds the end of its log."""


class LeaseHeld(AccountingError):
    """Another collector has this source now. Worth trying again: leases run out."""


class ConnectionLost(AccountingError):
    """A server can't be reached or went away. Worth trying again, with backoff, for ever."""
