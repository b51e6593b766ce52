-- Adds to the sessions that an hour began with those that settling found to have lived on into it.
UPDATE accounting.realm_slices s SET net = s.net + t.carried, top = s.top + t.carried
FROM (
    SELECT realm_id, starts_at, sum(sessions_carried) AS carried FROM staged_touched
    WHERE sessions_carried <> 0 GROUP BY realm_id, starts_at
) t
WHERE s.realm_id = t.realm_id AND s.starts_at = t.starts_at AND s.slice_at = '-infinity'
