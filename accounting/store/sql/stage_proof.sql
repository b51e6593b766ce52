-- Scratch tables for what the reports come to: the same columns as the books.
CREATE TEMP TABLE proof_sessions (LIKE accounting.sessions INCLUDING DEFAULTS) ON COMMIT DROP;
CREATE TEMP TABLE proof_session_usage (LIKE accounting.session_usage) ON COMMIT DROP;
CREATE TEMP TABLE proof_user_usage_hourly (LIKE accounting.user_usage_hourly) ON COMMIT DROP;
CREATE TEMP TABLE proof_user_usage_daily (LIKE accounting.user_usage_daily) ON COMMIT DROP;
CREATE TEMP TABLE proof_user_usage_monthly (LIKE accounting.user_usage_monthly) ON COMMIT DROP;
CREATE TEMP TABLE proof_realm_usage_hourly (LIKE accounting.realm_usage_hourly) ON COMMIT DROP;
CREATE TEMP TABLE proof_realm_usage_daily (LIKE accounting.realm_usage_daily) ON COMMIT DROP;
CREATE TEMP TABLE proof_realm_usage_monthly (LIKE accounting.realm_usage_monthly) ON COMMIT DROP;
CREATE TEMP TABLE proof_period_usage (LIKE accounting.session_usage) ON COMMIT DROP;
CREATE TEMP TABLE proof_buckets (LIKE accounting.buckets) ON COMMIT DROP;
CREATE TEMP TABLE proof_hours (
    realm_id integer, starts_at timestamptz, ends_at timestamptz,
    day_starts_at timestamptz, month_starts_at timestamptz
) ON COMMIT DROP
