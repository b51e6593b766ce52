"""The database's clock, the only one that business rules trust.

Every command, job and loader takes now from here, so that a wrong clock of a machine can't move a
border of the books. Within a transaction the clock goes on: it is not the transaction's start.
"""

from datetime import datetime
from typing import Final

from sqlalchemy import Connection, func, select

CLOCK_TOLERANCE_SECONDS: Final = 5
"""No time later than the database's now by more than this enters the books."""


def database_now(connection: Connection) -> datetime:
    """The time of the database's clock, aware."""
    now: datetime = connection.execute(select(func.accounting.database_now())).scalar_one()
    return now
