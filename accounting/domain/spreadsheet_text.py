"""Text in CSV files that a spreadsheet opens: none of it may run as a formula."""

import re
from typing import Final

# A spreadsheet runs a cell that begins with one of these as a formula (OWASP, CSV injection). The
# quote that prevents it is itself escaped: removing one quote gives the text back.
FORMULA_STARTS: Final = "=+@\t\r\n'\uff1d\uff0b\uff0d\uff20-"
# In locales with a decimal comma, a spreadsheet splits cells at these too, quoted or not.
CELL_SEPARATORS: Final = ";\t\r\n"
FORMULA_AFTER_SEPARATOR: Final = f"([{CELL_SEPARATORS}])(?=[{FORMULA_STARTS}])"
_ESCAPED_FORMULA: Final = re.compile(f"(^|[{CELL_SEPARATORS}])'(?=[{FORMULA_STARTS}])")
_FORMULA_IN_TEXT: Final = re.compile(FORMULA_AFTER_SEPARATOR)


def escape_formulas(text: str) -> str:
    """A text in which no part is a formula, as the exports write it."""
    escaped = _FORMULA_IN_TEXT.sub(r"\1'", text)
    return f"'{escaped}" if text and text[0] in FORMULA_STARTS else escaped


def unescape_formulas(text: str) -> str:
    """The text of which :func:`escape_formulas` made ``text``; of other texts, the text."""
    return _ESCAPED_FORMULA.sub(r"\1", text)
