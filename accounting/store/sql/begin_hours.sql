-- Counts the sessions that hours began with, where that is not counted yet; returns those hours.
-- What waits to be added is not counted now. One statement, so that it sees both at one moment.
INSERT INTO accounting.realm_slices (realm_id, starts_at, slice_at, net, top)
SELECT h.realm_id, h.starts_at, '-infinity', c.carried, c.carried
FROM staged_hours h
CROSS JOIN LATERAL (
    SELECT (
        SELECT count(*) FROM accounting.session_usage u
        WHERE u.realm_id = h.realm_id AND u.starts_at = h.starts_at
            AND NOT u.started AND u.vouched AND u.active_to > u.active_from
    ) - (
        SELECT coalesce(sum(t.sessions_carried), 0) FROM accounting.touched_hours t
        WHERE t.realm_id = h.realm_id AND t.starts_at = h.starts_at
    ) AS carried
) c
WHERE NOT EXISTS (
    SELECT FROM accounting.realm_slices s
    WHERE s.realm_id = h.realm_id AND s.starts_at = h.starts_at AND s.slice_at = '-infinity'
)
RETURNING realm_id, starts_at
