-- Drops the scratch tables of one day, for the next in the same transaction.
DROP TABLE IF EXISTS day_lives, proof_sessions, proof_session_usage, staged_carried, told_keys, sealed
