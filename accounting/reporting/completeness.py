"""What the books do not have yet, so that an empty result is no wrong answer."""

from sqlalchemy import Engine, func, select

from accounting.reporting.reader import read_rows


def usage_waits_for(engine: Engine, realm: str | None) -> str | None:
    """What usage waits for to have all that was loaded, in words; None if nothing."""
    waits_for = func.reporting.usage_waits_for(realm).label("waits_for")
    [row] = read_rows(engine, select(waits_for))
    text: str | None = row["waits_for"]
    return text
