"""The private tables, as SQLAlchemy Core sees them. ``alembic check`` holds them to the migrations.

Says what stands where, a module for each thing that tables are about; the migrations say it to
Postgres, with the constraints that matter.
"""

from accounting.db.schema.billing import (
    adjustments,
    periods,
    periods_to_adjust,
    proofs,
    rebuilds,
    statements,
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
from accounting.db.schema.operations import job_runs, message_counts, relay_threads
from accounting.db.schema.received import (
    dropped_positions,
    dropped_reports,
    key_sightings,
    rejected_messages,
    reports,
)
from accounting.db.schema.settled import (
    carried_sessions,
    finalized_sessions,
    session_hours,
    session_usage,
    sessions,
    settle_watermarks,
)
from accounting.db.schema.usage import (
    buckets,
    fold_watermarks,
    peak_deltas,
    realm_peak_slices,
    realm_usage,
    usage_deltas,
    user_usage,
    whole_user_usage,
)

__all__ = [
    "adjustments",
    "buckets",
    "capture_gaps",
    "carried_sessions",
    "dropped_positions",
    "dropped_reports",
    "epochs",
    "erasures",
    "feed",
    "feed_consumers",
    "feed_outbox",
    "finalized_sessions",
    "fold_watermarks",
    "installation",
    "job_runs",
    "key_sightings",
    "message_counts",
    "metadata",
    "peak_deltas",
    "periods",
    "periods_to_adjust",
    "proofs",
    "realm_peak_slices",
    "realm_rules",
    "realm_usage",
    "realms",
    "rebuilds",
    "rejected_messages",
    "relay_threads",
    "reports",
    "session_hours",
    "session_usage",
    "sessions",
    "settle_watermarks",
    "source_leases",
    "sources",
    "statements",
    "usage_deltas",
    "user_usage",
    "usernames",
    "users",
    "whole_user_usage",
]
