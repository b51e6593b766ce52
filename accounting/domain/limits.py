"""Limits of usage: their kinds, and the buckets in which they count."""

from typing import Final, Literal

from accounting.domain.calendar import Bucket, BucketLength
from accounting.domain.periods import periods
from accounting.domain.realm_rules import RealmRules

Measure = Literal["bytes", "sessions", "session_seconds"]
Direction = Literal["both", "received", "sent"]
Per = Literal["hour", "day", "month", "period"]
"""The length of a limit's buckets."""
THE_LIMIT: Final = 100
"""The threshold that is the limit itself, in percent."""


def limit_bucket(rules: RealmRules, per: str, time: int) -> Bucket:
    """The bucket of a limit that contains ``time``, in microseconds. It consists of whole days.

    Or it is an hour. The borders of a period are local midnights, as those of days are.
    """
    if per != "period":
        return rules.calendar.bucket(BucketLength(per), time)
    period = next(periods(rules, time, time))
    return Bucket(starts_at=period.starts_at, ends_at=period.ends_at, time_zone=period.time_zone)
