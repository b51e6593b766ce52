"""Proofs, stored: when each closed period was last verified, against what, and how it came out.

Owns ``proofs``. A proof made while all the reports were there is never replaced by a lesser one.
"""

from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import insert

from accounting.db.schema import proofs


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The last proof of a closed period. ``digest``: over its statement, line by line.

    ``verified_at``: when its reports were last all there; ``checked_at``: when it was last
    compared with what is left, which found ``differences``. ``positions``: how far each source
    was settled at ``verified_at``.
    """

    realm_id: int
    period: date
    digest: str
    positions: str
    verified_at: datetime
    checked_at: datetime
    differences: int


def load_proofs(connection: Connection) -> dict[tuple[int, date], Proof]:
    """Every proof, by realm_id and period."""
    rows = connection.execute(select(proofs)).mappings()
    return {(row["realm_id"], row["period"]): Proof(**row) for row in rows}


def record_proof(
    connection: Connection,
    realm_id: int,
    period: date,
    *,
    digest: str,
    positions: str,
    differences: int,
    is_whole: bool,
) -> None:
    """Keep that a period was verified now. ``is_whole``: from all of its reports."""
    new = insert(proofs).values(
        realm_id=realm_id,
        period=period,
        digest=digest,
        positions=positions,
        verified_at=func.now(),
        checked_at=func.now(),
        differences=differences,
    )
    replaced = ["checked_at", "differences"]
    if is_whole:
        replaced += ["digest", "positions", "verified_at"]
    connection.execute(
        new.on_conflict_do_update(
            index_elements=["realm_id", "period"],
            set_={name: new.excluded[name] for name in replaced},
        )
    )
