"""The address of a place: the path of a directory, or a URL. It never has credentials."""

import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from accounting.errors import UsageError
from accounting.export.local_directory import LocalDirectory
from accounting.export.object_store import ObjectStore
from accounting.export.place import Place
from accounting.export.sftp_directory import SftpDirectory

SCHEMES: Final = ("s3", "gs", "az", "sftp")
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_url(address: str) -> bool:
    """Whether an address is a URL, and not a path."""
    return _URL.match(address) is not None


def absolute_address(address: str) -> str:
    """The address, as it can be used from any directory."""
    return address if is_url(address) else str(Path(address).absolute())


def open_place(address: str) -> Place:
    """The place of a path or URL. Connects to nothing yet.

    Raises UsageError for a URL that is not understood or has credentials, and ConfigurationError
    where the library of its scheme is not installed.
    """
    scheme = _URL.match(address)
    if scheme is None:
        return LocalDirectory(Path(address))
    if scheme[1] == "sftp":
        return SftpDirectory(_checked(address))
    if scheme[1] in SCHEMES:
        return ObjectStore(_checked(address))
    urls = ", ".join(f"{name}://" for name in SCHEMES)
    raise UsageError(f"{scheme[0]} is not known here: expected a directory, or a URL with {urls}")


def split_location(location: str) -> tuple[Place, str]:
    """The place and the name of a file, from its path or URL."""
    if _URL.match(location):
        address, _, name = location.rpartition("/")
        return open_place(address), name
    path = Path(location)
    return open_place(str(path.parent)), path.name


def _checked(url: str) -> str:
    """The URL without slashes at its end, if it has what it needs and nothing secret.

    The messages do not repeat it: an error is logged, and so would be a secret.
    """
    scheme, rest = url.split("://", 1)
    authority = rest.partition("/")[0]
    is_sftp = scheme == "sftp"
    # A key or password may have slashes itself.
    before_at = rest.rpartition("@")[0].split("/")[0]
    has_secret = (
        ":" in before_at
        if is_sftp
        else "@" in rest or (":" in authority and not authority.startswith("arn:"))
    )
    if has_secret or "?" in url or "#" in url:
        raise UsageError(
            f"a {scheme}:// URL has neither a password, a key nor a query: every process of the"
            " machine could read it there. Credentials come from the usual files and variables of"
            f" {scheme}: see docs/exports.md"
        )
    try:
        is_complete = authority not in {"", "."} and (not is_sftp or _has_host(url))
    except ValueError:
        is_complete = False
    if not is_complete:
        what = "[USER@]HOST[:PORT]/DIRECTORY" if is_sftp else "BUCKET/PREFIX"
        raise UsageError(f"this {scheme}:// URL is not understood: expected {scheme}://{what}")
    return url.rstrip("/")


def _has_host(url: str) -> bool:
    """Whether it has a host and, if any, a port. Raises ValueError where that is no number."""
    parts = urlsplit(url)
    return bool(parts.hostname) and parts.port != 0
