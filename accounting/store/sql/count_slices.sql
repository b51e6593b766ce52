-- Counts the staged slices along the begins and ends of their sessions: half-open, ends before begins;
-- a live one lasts to the hour's end. One that ends as it begins was never alive.
-- OFFSET 0: slice by slice along the indexes; joined by ranges, the planner reads them whole.
WITH steps AS (
    SELECT t.realm_id, t.starts_at, e.started_at AS at, 1 AS step
    FROM staged_slices t
    CROSS JOIN LATERAL (
        SELECT * FROM accounting.sessions s
        WHERE s.realm_id = t.realm_id AND s.started_at >= t.from_at AND s.started_at < t.to_at
        OFFSET 0
    ) e
    WHERE e.vouched AND (e.ended_at IS NULL OR e.ended_at > e.started_at)
    UNION ALL
    SELECT t.realm_id, t.starts_at, e.ended_at, -1
    FROM staged_slices t
    CROSS JOIN LATERAL (
        SELECT * FROM accounting.sessions s
        WHERE s.realm_id = t.realm_id AND s.ended_at >= t.from_at AND s.ended_at < t.to_at
        OFFSET 0
    ) e
    WHERE e.vouched AND e.ended_at > greatest(e.started_at, t.starts_at)
), placed AS (
    SELECT realm_id, starts_at, at, step, greatest(
        starts_at, date_bin(make_interval(secs => :slice_seconds), at, 'epoch'::timestamptz)
    ) AS slice_at
    FROM steps
), counts AS (
    SELECT realm_id, starts_at, slice_at, step, sum(step) OVER (
        PARTITION BY realm_id, starts_at, slice_at ORDER BY at, step ROWS UNBOUNDED PRECEDING
    ) AS alive
    FROM placed
)
INSERT INTO accounting.realm_slices (realm_id, starts_at, slice_at, net, top)
SELECT realm_id, starts_at, slice_at, sum(step), greatest(max(alive), 0)
FROM counts
GROUP BY realm_id, starts_at, slice_at
