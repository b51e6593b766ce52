-- Scratch tables for what a day of reports leaves: lives that end with it, and those that go on.
CREATE TEMP TABLE proof_sessions (LIKE accounting.sessions INCLUDING DEFAULTS) ON COMMIT DROP;
CREATE TEMP TABLE proof_session_usage (LIKE accounting.session_usage) ON COMMIT DROP;
CREATE TEMP TABLE staged_carried (LIKE accounting.carried_lives) ON COMMIT DROP;
CREATE TEMP TABLE told_keys (
    source_id smallint, database integer, username_key uuid, allocation_id bigint
) ON COMMIT DROP
