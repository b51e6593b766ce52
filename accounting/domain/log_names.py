"""Names as coturn and log collectors write them, which is not always as they are.

coturn 4.17 writes a line end as a space, rsyslog a control character as ``#ooo``, and Docker every
byte that is not UTF-8 as U+FFFD. Arguments and results are escaped as in the views.
"""

import re
from typing import Final

_COLOUR_CODE: Final = re.compile(r"(?:\x1b|#033|\\x1b)\[[0-9;]*[mK]")
_SPACE: Final = re.compile("[ \r\n]+|#01[25]")
_ALTERED: Final = re.compile("\\\\x[0-9a-f]{2}|#[0-3][0-7]{2}|[\x00-\x1f\x7f\ufffd]")
_RUNS: Final = re.compile("\ufffd+")
_ALTERABLE: Final = re.compile("[ \x1b\ufffd]|#[0-3][0-7]{2}")


def alterable(name: str) -> bool:
    """Whether a name in a log may be another in coturn's messages."""
    return _ALTERABLE.search(name) is not None


def name_as_logged(name: str) -> str:
    """The form that all names have in common which a log may write alike."""
    name = _SPACE.sub(" ", _COLOUR_CODE.sub("", name))
    return _RUNS.sub("\ufffd", _ALTERED.sub("\ufffd", name))
