-- name: terminate_hung_loaders
-- Terminates sessions that hold a lock on sources and have waited that long for their client.
SELECT pg_terminate_backend(a.pid)
FROM pg_stat_activity a
WHERE a.usename = current_user AND a.pid <> pg_backend_pid()
    AND a.datname = current_database() AND a.wait_event = 'ClientRead'
    AND a.state_change < clock_timestamp() - make_interval(secs => :seconds)
    AND EXISTS (
        SELECT 1 FROM pg_locks l
        WHERE l.pid = a.pid AND l.granted AND l.mode = 'RowShareLock'
            AND l.relation = 'accounting.sources'::regclass
    );
