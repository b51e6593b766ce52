-- How far each source is: seconds behind now, its open gap, and which collector holds it.
SELECT
    s.source_id, s.source, s.mode,
    extract(epoch FROM clock_timestamp() - s.captured_until)::float8 AS captured_lag_seconds,
    extract(epoch FROM clock_timestamp() - s.loaded_until)::float8 AS loaded_lag_seconds,
    extract(epoch FROM clock_timestamp() - t.until)::float8 AS settled_lag_seconds,
    t.until AS settled_until,
    s.captured_until, s.last_received_at,
    g.from_at AS gap_from, g.cause AS gap_cause,
    l.holder, l.host
FROM accounting.sources s
LEFT JOIN accounting.settling t USING (source_id)
LEFT JOIN accounting.source_leases l
    ON l.source_id = s.source_id AND l.expires_at > clock_timestamp()
LEFT JOIN LATERAL (
    SELECT from_at, cause FROM accounting.capture_gaps
    WHERE source_id = s.source_id AND to_at IS NULL
    ORDER BY from_at LIMIT 1
) g ON true
WHERE s.retired_at IS NULL
ORDER BY s.source
