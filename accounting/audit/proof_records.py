"""Records of proofs: when each closed period was last verified, against what, with which result.

A proof from all of a period's reports is never replaced by one from part of them.
"""

from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import insert

from accounting.db.schema import proofs


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The last proof of a closed period.

    ``digest``: over all lines of its statement. ``positions``: how far each source was settled at
    ``verified_at``, the last time that all reports were there. ``checked_at``: when the period was
    last compared with the reports that are left, which found ``differences``.
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
    from_all_reports: bool,
) -> None:
    """Record that a period was verified now."""
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
    if from_all_reports:
        replaced += ["digest", "positions", "verified_at"]
    connection.execute(
        new.on_conflict_do_update(
            index_elements=["realm_id", "period"],
            set_={name: new.excluded[name] for name in replaced},
        )
    )
