"""The table of coturn messages with their expected results: ``tests/domain/lines.txt``."""

import ast
import re
from pathlib import Path
from typing import Final

_TEXT: Final = re.sub(
    r"(?m)^#.*\n", "", (Path(__file__).parents[1] / "domain/lines.txt").read_text()
)
MESSAGE_LINES: Final = [paragraph.splitlines() for paragraph in re.split(r"\n{2,}", _TEXT.strip())]


def unescaped(line: str) -> bytes:
    """The bytes of a line's column, which is written as the text of a bytes literal."""
    raw: bytes = ast.literal_eval(f'b"{line}"')
    return raw
