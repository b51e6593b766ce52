"""The private tables, as SQLAlchemy Core sees them. ``alembic check`` holds them to the migrations.

Says what stands where, a module for each thing that tables are about; the migrations say it to
Postgres, with the constraints that matter.
"""

from accounting.db.schema.billing import (
    adjustments,
    periods,
    proofs,
    rebuilds,
    statements,
    touched_periods,
)
from accounting.db.schema.capture import capture_gaps, epochs, source_leases, sources
from accounting.db.schema.columns import metadata
from accounting.db.schema.delivery import feed, feed_consumers, feed_outbox
from accounting.db.schema.identities import (
    erasures,
    installation,
    realm_rules,
    realms,
    usernames,
    users,
)
from accounting.db.schema.operations import job_runs, relay_threads, tallies
from accounting.db.schema.received import (
    dropped_positions,
    dropped_reports,
    key_sightings,
    rejected_messages,
    reports,
)
from accounting.db.schema.settled import (
    carried_lives,
    sealed_sessions,
    session_hours,
    session_usage,
    sessions,
    settling,
)
from accounting.db.schema.usage import (
    buckets,
    folds,
    realm_slices,
    realm_usage,
    touched_hours,
    touched_slices,
    user_usage,
    whole_user_usage,
)

__all__ = [
    "adjustments",
    "buckets",
    "capture_gaps",
    "carried_lives",
    "dropped_positions",
    "dropped_reports",
    "epochs",
    "erasures",
    "feed",
    "feed_consumers",
    "feed_outbox",
    "folds",
    "installation",
    "job_runs",
    "key_sightings",
    "metadata",
    "periods",
    "proofs",
    "realm_rules",
    "realm_slices",
    "realm_usage",
    "realms",
    "rebuilds",
    "rejected_messages",
    "relay_threads",
    "reports",
    "sealed_sessions",
    "session_hours",
    "session_usage",
    "sessions",
    "settling",
    "source_leases",
    "sources",
    "statements",
    "tallies",
    "touched_hours",
    "touched_periods",
    "touched_slices",
    "user_usage",
    "usernames",
    "users",
    "whole_user_usage",
]
