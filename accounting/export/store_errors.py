"""The libraries that reach other machines: their errors as one line, and their extras."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Final

from accounting.errors import AccountingError, ConfigurationError
from accounting.installation import missing_extra

_LOGGERS: Final = (
    "adlfs", "aiobotocore", "asyncio", "asyncssh", "azure", "botocore", "fsspec", "gcsfs", "google",
    "s3fs",
)  # fmt: skip


def require_library(scheme: str, module: str) -> None:
    """Raise ConfigurationError if the library of a scheme is not installed."""
    if find_spec(module) is None:
        raise ConfigurationError(missing_extra(f"{scheme}:// needs", module, scheme))


def silence_libraries() -> None:
    """Keep the libraries from logging what they also raise, and each of their retries."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def store_errors(location: str, failing: str) -> Iterator[None]:
    """Turn any error of a library's call into an AccountingError.

    ``failing``: what can't be done, such as "written". What is not there to be "read" stays a
    FileNotFoundError.
    """
    try:
        yield
    except AccountingError:
        raise
    except Exception as error:  # the libraries' errors have no base in common
        if isinstance(error, FileNotFoundError) and failing == "read":
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = lines[0] if lines else type(error).__name__
        raise AccountingError(f"{location}: can't be {failing}: {text}") from error
