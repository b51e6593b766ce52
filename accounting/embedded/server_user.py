"""The operating-system user that an embedded server runs as."""

import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import structlog

from accounting.errors import ServerError

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ServerUser:
    """A user, by the arguments of :mod:`subprocess`: all None for the user of this process."""

    name: str | None = None
    uid: int | None = None
    gid: int | None = None

    @classmethod
    def for_servers(cls) -> Self:
        """``postgres`` or ``nobody`` when this process runs as root, else its own user.

        Postgres refuses to run as root, and everyone on this machine can connect to Valkey.
        """
        if os.geteuid() != 0:
            return cls()
        for name in ("postgres", "nobody"):
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return cls(name, entry.pw_uid, entry.pw_gid)
        raise ServerError(
            "the embedded servers can't run as root, and there is neither a user 'postgres' nor "
            "'nobody' to run them: create one of them, or run as an ordinary user"
        )

    @property
    def extra_groups(self) -> list[int] | None:
        """The supplementary groups: none for another user, None to keep those of this process."""
        return None if self.uid is None else []

    def chown(self, path: Path) -> None:
        """Give a file or directory to this user."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def allow_traversal_to(self, *paths: Path) -> None:
        """Let this user search (not list) the directories above ``paths``; logs the changes."""
        if self.uid is None:
            return
        changed = []
        for directory in dict.fromkeys(parent for path in paths for parent in path.parents[::-1]):
            status = directory.stat()
            if status.st_uid == self.uid:
                needed_bit = 0o100
            elif status.st_gid == self.gid:
                needed_bit = 0o010
            else:
                needed_bit = 0o001
            if not status.st_mode & needed_bit:
                directory.chmod(status.st_mode & 0o7777 | needed_bit)
                changed.append(str(directory))
        if changed:
            log.warning(
                "made directories searchable for the user of the embedded servers",
                user=self.name,
                directories=changed,
            )


THIS_USER: Final = ServerUser()
