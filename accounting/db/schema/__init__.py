"""The private tables as SQLAlchemy Core, a module for each room.

The migrations create them, with the constraints; ``alembic check`` compares the two.
"""

from accounting.db.schema.access import browser_sessions, tokens
from accounting.db.schema.audit import (
    carried_sessions,
    dropped_positions,
    dropped_reports,
    finalized_sessions,
    proofs,
    pruned_counts,
    pruned_usage,
    rebuilds,
    report_archives,
)
from accounting.db.schema.billing import (
    adjustments,
    periods,
    periods_to_adjust,
    statements,
)
from accounting.db.schema.columns import metadata
from accounting.db.schema.feed import (
    feed,
    feed_batches,
    feed_consumers,
    feed_outbox,
)
from accounting.db.schema.front import cells, front, front_peak_hours, front_peaks, membership
from accounting.db.schema.identities import (
    erasures,
    installation,
    realm_rules,
    realms,
    usernames,
    users,
)
from accounting.db.schema.ingest import (
    key_sightings,
    message_counts,
    rejected_counts,
    rejected_messages,
    reports,
)
from accounting.db.schema.limits import (
    limit_cells,
    limit_periods,
    limit_states,
    limits,
    waiting_limits,
)
from accounting.db.schema.locks import (
    locks,
)
from accounting.db.schema.ops import (
    job_runs,
)
from accounting.db.schema.sessions import (
    relay_threads,
    session_hours,
    session_usage,
    sessions,
    set_aside_reports,
    settle_watermarks,
)
from accounting.db.schema.sources import (
    capture_gaps,
    epochs,
    former_source_names,
    source_conflicts,
    source_histories,
    source_leases,
    sources,
)
from accounting.db.schema.usage import (
    buckets,
    changed_hours,
    dimension_peaks,
    dimension_peaks_hourly,
    fold_watermarks,
    peak_deltas,
    peak_versions,
    realm_peak_slices,
    realm_usage,
    server_deltas,
    server_load,
    server_traffic,
    server_usage_hourly,
    usage_deltas,
    user_usage,
    whole_user_usage,
)
from accounting.db.schema.webhooks import (
    webhook_attempts,
    webhook_customers,
    webhook_refusals,
    webhooks,
)

__all__ = [
    "adjustments",
    "browser_sessions",
    "buckets",
    "capture_gaps",
    "carried_sessions",
    "cells",
    "changed_hours",
    "dimension_peaks",
    "dimension_peaks_hourly",
    "dropped_positions",
    "dropped_reports",
    "epochs",
    "erasures",
    "feed",
    "feed_batches",
    "feed_consumers",
    "feed_outbox",
    "finalized_sessions",
    "fold_watermarks",
    "former_source_names",
    "front",
    "front_peak_hours",
    "front_peaks",
    "installation",
    "job_runs",
    "key_sightings",
    "limit_cells",
    "limit_periods",
    "limit_states",
    "limits",
    "locks",
    "membership",
    "message_counts",
    "metadata",
    "peak_deltas",
    "peak_versions",
    "periods",
    "periods_to_adjust",
    "proofs",
    "pruned_counts",
    "pruned_usage",
    "realm_peak_slices",
    "realm_rules",
    "realm_usage",
    "realms",
    "rebuilds",
    "rejected_counts",
    "rejected_messages",
    "relay_threads",
    "report_archives",
    "reports",
    "server_deltas",
    "server_load",
    "server_traffic",
    "server_usage_hourly",
    "session_hours",
    "session_usage",
    "sessions",
    "set_aside_reports",
    "settle_watermarks",
    "source_conflicts",
    "source_histories",
    "source_leases",
    "sources",
    "statements",
    "tokens",
    "usage_deltas",
    "user_usage",
    "usernames",
    "users",
    "waiting_limits",
    "webhook_attempts",
    "webhook_customers",
    "webhook_refusals",
    "webhooks",
    "whole_user_usage",
]
