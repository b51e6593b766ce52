"""When a request that failed is sent again."""

import random
from typing import Final

MIN_RETRY_SECONDS: Final = 5.0
MAX_RETRY_SECONDS: Final = 5 * 3600.0


def retry_pause(failures: int, retry_after_seconds: float | None) -> float:
    """Seconds until the next attempt after so many failures in a row, at least one.

    Doubled by each, with jitter, so that endpoints of one server that failed together are not tried
    together. What the server asks for is honoured up to the longest pause.
    """
    base = min(MIN_RETRY_SECONDS * 2.0 ** min(failures - 1, 20), MAX_RETRY_SECONDS)
    pause = base * random.uniform(0.8, 1.2)  # noqa: S311  # it is no secret
    return min(max(pause, retry_after_seconds or 0.0), MAX_RETRY_SECONDS)
