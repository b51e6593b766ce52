-- name: begin_buckets
-- Gives users whose first usage in an hour is staged a day and a month for it, empty as long as the hour
-- is not folded into them: what shows them adds it. Before their hours are written.
WITH fresh AS (
    SELECT DISTINCT t.user_key, t.realm_id, h.day_starts_at, h.month_starts_at
    FROM staged_touched t JOIN staged_hours h USING (realm_id, starts_at)
    WHERE NOT h.is_folded AND NOT EXISTS (
        SELECT FROM accounting.user_usage_hourly u
        WHERE u.user_key = t.user_key AND u.starts_at = t.starts_at
    )
),
days AS (
    INSERT INTO accounting.user_usage_daily (
        user_key, starts_at, realm_id,
        received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
        peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
        session_microseconds, estimated_bytes
    )
    SELECT DISTINCT user_key, day_starts_at, realm_id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
    FROM fresh ORDER BY user_key
    ON CONFLICT DO NOTHING
)
INSERT INTO accounting.user_usage_monthly (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
    peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
    session_microseconds, estimated_bytes
)
SELECT DISTINCT user_key, month_starts_at, realm_id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
FROM fresh ORDER BY user_key
ON CONFLICT DO NOTHING;

-- name: begin_hours
-- Counts the sessions that hours began with, where that is not counted yet; returns those hours.
-- What waits to be added is not counted now. One statement, so that it sees both at one moment.
INSERT INTO accounting.realm_peak_slices (realm_id, starts_at, slice_at, session_delta, session_peak)
SELECT h.realm_id, h.starts_at, '-infinity', c.carried, c.carried
FROM staged_hours h
CROSS JOIN LATERAL (
    SELECT (
        SELECT count(*) FROM accounting.session_usage u
        WHERE u.realm_id = h.realm_id AND u.starts_at = h.starts_at
            AND NOT u.started AND u.confirmed AND u.active_to > u.active_from
    ) - (
        SELECT coalesce(sum(t.sessions_carried), 0) FROM accounting.usage_deltas t
        WHERE t.realm_id = h.realm_id AND t.starts_at = h.starts_at
    ) AS carried
) c
WHERE NOT EXISTS (
    SELECT FROM accounting.realm_peak_slices s
    WHERE s.realm_id = h.realm_id AND s.starts_at = h.starts_at AND s.slice_at = '-infinity'
)
RETURNING realm_id, starts_at;

-- name: carry_sessions
-- Adds to the sessions that an hour began with those that settling found to have lived on into it.
UPDATE accounting.realm_peak_slices s SET session_delta = s.session_delta + t.carried, session_peak = s.session_peak + t.carried
FROM (
    SELECT realm_id, starts_at, sum(sessions_carried) AS carried FROM staged_touched
    WHERE sessions_carried <> 0 GROUP BY realm_id, starts_at
) t
WHERE s.realm_id = t.realm_id AND s.starts_at = t.starts_at AND s.slice_at = '-infinity';

-- name: count_slices
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
    WHERE e.confirmed AND (e.ended_at IS NULL OR e.ended_at > e.started_at)
    UNION ALL
    SELECT t.realm_id, t.starts_at, e.ended_at, -1
    FROM staged_slices t
    CROSS JOIN LATERAL (
        SELECT * FROM accounting.sessions s
        WHERE s.realm_id = t.realm_id AND s.ended_at >= t.from_at AND s.ended_at < t.to_at
        OFFSET 0
    ) e
    WHERE e.confirmed AND e.ended_at > greatest(e.started_at, t.starts_at)
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
INSERT INTO accounting.realm_peak_slices (realm_id, starts_at, slice_at, session_delta, session_peak)
SELECT realm_id, starts_at, slice_at, sum(step), greatest(max(alive), 0)
FROM counts
GROUP BY realm_id, starts_at, slice_at;

-- name: drop_slices
-- Drops the slices of a realm's hours long before :starts_at: they are counted anew if ever touched.
DELETE FROM accounting.realm_peak_slices
WHERE realm_id = :realm_id
    AND starts_at < CAST(:starts_at AS timestamptz) - make_interval(secs => :kept_seconds);

-- name: empty_slices
-- Empties the staged slices, to be counted anew.
DELETE FROM accounting.realm_peak_slices s USING staged_slices t
WHERE s.realm_id = t.realm_id AND s.starts_at = t.starts_at
    AND s.slice_at >= t.from_at AND s.slice_at < t.to_at;

-- name: fold_user_daily
-- Adds to the days of users their hours that are over.
MERGE INTO accounting.user_usage_daily u
USING (
    SELECT u.user_key, h.day_starts_at AS starts_at, u.realm_id,
        sum(u.received_packets)::bigint AS received_packets,
        sum(u.received_bytes)::bigint AS received_bytes,
        sum(u.sent_packets)::bigint AS sent_packets, sum(u.sent_bytes)::bigint AS sent_bytes,
        sum(u.peer_received_packets)::bigint AS peer_received_packets,
        sum(u.peer_received_bytes)::bigint AS peer_received_bytes,
        sum(u.peer_sent_packets)::bigint AS peer_sent_packets,
        sum(u.peer_sent_bytes)::bigint AS peer_sent_bytes,
        sum(u.sessions_started)::bigint AS sessions_started,
        sum(u.sessions_ended)::bigint AS sessions_ended,
        sum(u.session_microseconds) AS session_microseconds,
        sum(u.estimated_bytes)::bigint AS estimated_bytes
    FROM staged_folds h JOIN accounting.user_usage_hourly u USING (realm_id, starts_at)
    GROUP BY u.user_key, h.day_starts_at, u.realm_id
    ORDER BY u.user_key
) t
ON u.user_key = t.user_key AND u.starts_at = t.starts_at
WHEN MATCHED THEN UPDATE SET
    received_packets = u.received_packets + t.received_packets,
    received_bytes = u.received_bytes + t.received_bytes,
    sent_packets = u.sent_packets + t.sent_packets, sent_bytes = u.sent_bytes + t.sent_bytes,
    peer_received_packets = u.peer_received_packets + t.peer_received_packets,
    peer_received_bytes = u.peer_received_bytes + t.peer_received_bytes,
    peer_sent_packets = u.peer_sent_packets + t.peer_sent_packets,
    peer_sent_bytes = u.peer_sent_bytes + t.peer_sent_bytes,
    sessions_started = u.sessions_started + t.sessions_started,
    sessions_ended = u.sessions_ended + t.sessions_ended,
    session_microseconds = u.session_microseconds + t.session_microseconds,
    estimated_bytes = u.estimated_bytes + t.estimated_bytes
WHEN NOT MATCHED THEN INSERT (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
    peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
    session_microseconds, estimated_bytes
) VALUES (
    t.user_key, t.starts_at, t.realm_id,
    t.received_packets, t.received_bytes, t.sent_packets, t.sent_bytes, t.peer_received_packets,
    t.peer_received_bytes, t.peer_sent_packets, t.peer_sent_bytes, t.sessions_started,
    t.sessions_ended, t.session_microseconds, t.estimated_bytes
);

-- name: fold_user_monthly
-- Adds to the months of users their hours that are over.
MERGE INTO accounting.user_usage_monthly u
USING (
    SELECT u.user_key, h.month_starts_at AS starts_at, u.realm_id,
        sum(u.received_packets)::bigint AS received_packets,
        sum(u.received_bytes)::bigint AS received_bytes,
        sum(u.sent_packets)::bigint AS sent_packets, sum(u.sent_bytes)::bigint AS sent_bytes,
        sum(u.peer_received_packets)::bigint AS peer_received_packets,
        sum(u.peer_received_bytes)::bigint AS peer_received_bytes,
        sum(u.peer_sent_packets)::bigint AS peer_sent_packets,
        sum(u.peer_sent_bytes)::bigint AS peer_sent_bytes,
        sum(u.sessions_started)::bigint AS sessions_started,
        sum(u.sessions_ended)::bigint AS sessions_ended,
        sum(u.session_microseconds) AS session_microseconds,
        sum(u.estimated_bytes)::bigint AS estimated_bytes
    FROM staged_folds h JOIN accounting.user_usage_hourly u USING (realm_id, starts_at)
    GROUP BY u.user_key, h.month_starts_at, u.realm_id
    ORDER BY u.user_key
) t
ON u.user_key = t.user_key AND u.starts_at = t.starts_at
WHEN MATCHED THEN UPDATE SET
    received_packets = u.received_packets + t.received_packets,
    received_bytes = u.received_bytes + t.received_bytes,
    sent_packets = u.sent_packets + t.sent_packets, sent_bytes = u.sent_bytes + t.sent_bytes,
    peer_received_packets = u.peer_received_packets + t.peer_received_packets,
    peer_received_bytes = u.peer_received_bytes + t.peer_received_bytes,
    peer_sent_packets = u.peer_sent_packets + t.peer_sent_packets,
    peer_sent_bytes = u.peer_sent_bytes + t.peer_sent_bytes,
    sessions_started = u.sessions_started + t.sessions_started,
    sessions_ended = u.sessions_ended + t.sessions_ended,
    session_microseconds = u.session_microseconds + t.session_microseconds,
    estimated_bytes = u.estimated_bytes + t.estimated_bytes
WHEN NOT MATCHED THEN INSERT (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
    peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
    session_microseconds, estimated_bytes
) VALUES (
    t.user_key, t.starts_at, t.realm_id,
    t.received_packets, t.received_bytes, t.sent_packets, t.sent_bytes, t.peer_received_packets,
    t.peer_received_bytes, t.peer_sent_packets, t.peer_sent_bytes, t.sessions_started,
    t.sessions_ended, t.session_microseconds, t.estimated_bytes
);

-- name: peak_days
-- Sets the peaks of the days of realms that the staged hours lie in: the highest of their hours.
UPDATE accounting.realm_usage_daily u SET peak_sessions = p.peak_sessions
FROM (
    SELECT t.realm_id, t.starts_at, (
        SELECT max(h.peak_sessions) FROM accounting.realm_usage_hourly h
        WHERE h.realm_id = t.realm_id AND h.starts_at >= t.starts_at AND h.starts_at < t.ends_at
    ) AS peak_sessions
    FROM (
        SELECT DISTINCT realm_id, day_starts_at AS starts_at, day_ends_at AS ends_at
        FROM staged_hours
    ) t
) p
WHERE u.realm_id = p.realm_id AND u.starts_at = p.starts_at
    AND u.peak_sessions <> p.peak_sessions;

-- name: peak_hours
-- Sets the peaks of the staged hours of realms: the highest of their slices.
UPDATE accounting.realm_usage_hourly u SET peak_sessions = p.peak_sessions
FROM (
    SELECT realm_id, starts_at, max(before + session_peak) AS peak_sessions
    FROM (
        SELECT h.realm_id, h.starts_at, s.session_peak, sum(s.session_delta) OVER (
            PARTITION BY h.realm_id, h.starts_at ORDER BY s.slice_at
        ) - s.session_delta AS before
        FROM staged_hours h
        JOIN accounting.realm_peak_slices s USING (realm_id, starts_at)
    ) c
    GROUP BY realm_id, starts_at
) p
WHERE u.realm_id = p.realm_id AND u.starts_at = p.starts_at
    AND u.peak_sessions <> p.peak_sessions;

-- name: peak_months
-- Sets the peaks of the months of realms that the staged hours lie in: the highest of their days.
UPDATE accounting.realm_usage_monthly u SET peak_sessions = p.peak_sessions
FROM (
    SELECT t.realm_id, t.starts_at, (
        SELECT max(h.peak_sessions) FROM accounting.realm_usage_daily h
        WHERE h.realm_id = t.realm_id AND h.starts_at >= t.starts_at AND h.starts_at < t.ends_at
    ) AS peak_sessions
    FROM (
        SELECT DISTINCT realm_id, month_starts_at AS starts_at, month_ends_at AS ends_at
        FROM staged_hours
    ) t
) p
WHERE u.realm_id = p.realm_id AND u.starts_at = p.starts_at
    AND u.peak_sessions <> p.peak_sessions;

-- name: rollup_realm_daily
-- Adds to the touched days of realms what changed in their users' hours. Peaks are counted apart.
INSERT INTO accounting.realm_usage_daily AS u (
    realm_id, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes,
    peak_sessions
)
SELECT t.realm_id, h.day_starts_at,
    sum(t.received_packets), sum(t.received_bytes), sum(t.sent_packets),
    sum(t.sent_bytes), sum(t.peer_received_packets), sum(t.peer_received_bytes),
    sum(t.peer_sent_packets), sum(t.peer_sent_bytes), sum(t.sessions_started),
    sum(t.sessions_ended), sum(t.session_microseconds), sum(t.estimated_bytes),
    0
FROM staged_touched t JOIN staged_hours h USING (realm_id, starts_at)
GROUP BY t.realm_id, h.day_starts_at
ON CONFLICT (realm_id, starts_at) DO UPDATE SET
    received_packets = u.received_packets + excluded.received_packets, received_bytes = u.received_bytes + excluded.received_bytes,
    sent_packets = u.sent_packets + excluded.sent_packets, sent_bytes = u.sent_bytes + excluded.sent_bytes,
    peer_received_packets = u.peer_received_packets + excluded.peer_received_packets, peer_received_bytes = u.peer_received_bytes + excluded.peer_received_bytes,
    peer_sent_packets = u.peer_sent_packets + excluded.peer_sent_packets, peer_sent_bytes = u.peer_sent_bytes + excluded.peer_sent_bytes,
    sessions_started = u.sessions_started + excluded.sessions_started, sessions_ended = u.sessions_ended + excluded.sessions_ended,
    session_microseconds = u.session_microseconds + excluded.session_microseconds, estimated_bytes = u.estimated_bytes + excluded.estimated_bytes;

-- name: rollup_realm_hourly
-- Adds to the touched hours of realms what changed in their users' hours. Peaks are counted apart.
INSERT INTO accounting.realm_usage_hourly AS u (
    realm_id, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes,
    peak_sessions
)
SELECT t.realm_id, h.starts_at,
    sum(t.received_packets), sum(t.received_bytes), sum(t.sent_packets),
    sum(t.sent_bytes), sum(t.peer_received_packets), sum(t.peer_received_bytes),
    sum(t.peer_sent_packets), sum(t.peer_sent_bytes), sum(t.sessions_started),
    sum(t.sessions_ended), sum(t.session_microseconds), sum(t.estimated_bytes),
    0
FROM staged_touched t JOIN staged_hours h USING (realm_id, starts_at)
GROUP BY t.realm_id, h.starts_at
ON CONFLICT (realm_id, starts_at) DO UPDATE SET
    received_packets = u.received_packets + excluded.received_packets, received_bytes = u.received_bytes + excluded.received_bytes,
    sent_packets = u.sent_packets + excluded.sent_packets, sent_bytes = u.sent_bytes + excluded.sent_bytes,
    peer_received_packets = u.peer_received_packets + excluded.peer_received_packets, peer_received_bytes = u.peer_received_bytes + excluded.peer_received_bytes,
    peer_sent_packets = u.peer_sent_packets + excluded.peer_sent_packets, peer_sent_bytes = u.peer_sent_bytes + excluded.peer_sent_bytes,
    sessions_started = u.sessions_started + excluded.sessions_started, sessions_ended = u.sessions_ended + excluded.sessions_ended,
    session_microseconds = u.session_microseconds + excluded.session_microseconds, estimated_bytes = u.estimated_bytes + excluded.estimated_bytes;

-- name: rollup_realm_monthly
-- Adds to the touched months of realms what changed in their users' hours. Peaks are counted apart.
INSERT INTO accounting.realm_usage_monthly AS u (
    realm_id, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes,
    peak_sessions
)
SELECT t.realm_id, h.month_starts_at,
    sum(t.received_packets), sum(t.received_bytes), sum(t.sent_packets),
    sum(t.sent_bytes), sum(t.peer_received_packets), sum(t.peer_received_bytes),
    sum(t.peer_sent_packets), sum(t.peer_sent_bytes), sum(t.sessions_started),
    sum(t.sessions_ended), sum(t.session_microseconds), sum(t.estimated_bytes),
    0
FROM staged_touched t JOIN staged_hours h USING (realm_id, starts_at)
GROUP BY t.realm_id, h.month_starts_at
ON CONFLICT (realm_id, starts_at) DO UPDATE SET
    received_packets = u.received_packets + excluded.received_packets, received_bytes = u.received_bytes + excluded.received_bytes,
    sent_packets = u.sent_packets + excluded.sent_packets, sent_bytes = u.sent_bytes + excluded.sent_bytes,
    peer_received_packets = u.peer_received_packets + excluded.peer_received_packets, peer_received_bytes = u.peer_received_bytes + excluded.peer_received_bytes,
    peer_sent_packets = u.peer_sent_packets + excluded.peer_sent_packets, peer_sent_bytes = u.peer_sent_bytes + excluded.peer_sent_bytes,
    sessions_started = u.sessions_started + excluded.sessions_started, sessions_ended = u.sessions_ended + excluded.sessions_ended,
    session_microseconds = u.session_microseconds + excluded.session_microseconds, estimated_bytes = u.estimated_bytes + excluded.estimated_bytes;

-- name: rollup_user_daily
-- Adds to the days of users what changed in hours that are folded into them already: late usage.
MERGE INTO accounting.user_usage_daily u
USING (
    SELECT t.user_key, h.day_starts_at AS starts_at, t.realm_id,
        sum(t.received_packets)::bigint AS received_packets,
        sum(t.received_bytes)::bigint AS received_bytes,
        sum(t.sent_packets)::bigint AS sent_packets, sum(t.sent_bytes)::bigint AS sent_bytes,
        sum(t.peer_received_packets)::bigint AS peer_received_packets,
        sum(t.peer_received_bytes)::bigint AS peer_received_bytes,
        sum(t.peer_sent_packets)::bigint AS peer_sent_packets,
        sum(t.peer_sent_bytes)::bigint AS peer_sent_bytes,
        sum(t.sessions_started)::bigint AS sessions_started,
        sum(t.sessions_ended)::bigint AS sessions_ended,
        sum(t.session_microseconds) AS session_microseconds,
        sum(t.estimated_bytes)::bigint AS estimated_bytes
    FROM staged_touched t JOIN staged_hours h USING (realm_id, starts_at)
    WHERE h.is_folded
    GROUP BY t.user_key, h.day_starts_at, t.realm_id
    ORDER BY t.user_key
) t
ON u.user_key = t.user_key AND u.starts_at = t.starts_at
WHEN MATCHED THEN UPDATE SET
    received_packets = u.received_packets + t.received_packets,
    received_bytes = u.received_bytes + t.received_bytes,
    sent_packets = u.sent_packets + t.sent_packets, sent_bytes = u.sent_bytes + t.sent_bytes,
    peer_received_packets = u.peer_received_packets + t.peer_received_packets,
    peer_received_bytes = u.peer_received_bytes + t.peer_received_bytes,
    peer_sent_packets = u.peer_sent_packets + t.peer_sent_packets,
    peer_sent_bytes = u.peer_sent_bytes + t.peer_sent_bytes,
    sessions_started = u.sessions_started + t.sessions_started,
    sessions_ended = u.sessions_ended + t.sessions_ended,
    session_microseconds = u.session_microseconds + t.session_microseconds,
    estimated_bytes = u.estimated_bytes + t.estimated_bytes
WHEN NOT MATCHED THEN INSERT (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
    peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
    session_microseconds, estimated_bytes
) VALUES (
    t.user_key, t.starts_at, t.realm_id,
    t.received_packets, t.received_bytes, t.sent_packets, t.sent_bytes, t.peer_received_packets,
    t.peer_received_bytes, t.peer_sent_packets, t.peer_sent_bytes, t.sessions_started,
    t.sessions_ended, t.session_microseconds, t.estimated_bytes
);

-- name: rollup_user_hourly
-- Adds to the touched hours of users what changed in them.
MERGE INTO accounting.user_usage_hourly u
USING (
    SELECT * FROM staged_touched ORDER BY user_key, starts_at
) t
ON u.user_key = t.user_key AND u.starts_at = t.starts_at
WHEN MATCHED THEN UPDATE SET
    received_packets = u.received_packets + t.received_packets,
    received_bytes = u.received_bytes + t.received_bytes,
    sent_packets = u.sent_packets + t.sent_packets, sent_bytes = u.sent_bytes + t.sent_bytes,
    peer_received_packets = u.peer_received_packets + t.peer_received_packets,
    peer_received_bytes = u.peer_received_bytes + t.peer_received_bytes,
    peer_sent_packets = u.peer_sent_packets + t.peer_sent_packets,
    peer_sent_bytes = u.peer_sent_bytes + t.peer_sent_bytes,
    sessions_started = u.sessions_started + t.sessions_started,
    sessions_ended = u.sessions_ended + t.sessions_ended,
    session_microseconds = u.session_microseconds + t.session_microseconds,
    estimated_bytes = u.estimated_bytes + t.estimated_bytes
WHEN NOT MATCHED THEN INSERT (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
    peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
    session_microseconds, estimated_bytes
) VALUES (
    t.user_key, t.starts_at, t.realm_id,
    t.received_packets, t.received_bytes, t.sent_packets, t.sent_bytes, t.peer_received_packets,
    t.peer_received_bytes, t.peer_sent_packets, t.peer_sent_bytes, t.sessions_started,
    t.sessions_ended, t.session_microseconds, t.estimated_bytes
);

-- name: rollup_user_monthly
-- Adds to the months of users what changed in hours that are folded into them already: late usage.
MERGE INTO accounting.user_usage_monthly u
USING (
    SELECT t.user_key, h.month_starts_at AS starts_at, t.realm_id,
        sum(t.received_packets)::bigint AS received_packets,
        sum(t.received_bytes)::bigint AS received_bytes,
        sum(t.sent_packets)::bigint AS sent_packets, sum(t.sent_bytes)::bigint AS sent_bytes,
        sum(t.peer_received_packets)::bigint AS peer_received_packets,
        sum(t.peer_received_bytes)::bigint AS peer_received_bytes,
        sum(t.peer_sent_packets)::bigint AS peer_sent_packets,
        sum(t.peer_sent_bytes)::bigint AS peer_sent_bytes,
        sum(t.sessions_started)::bigint AS sessions_started,
        sum(t.sessions_ended)::bigint AS sessions_ended,
        sum(t.session_microseconds) AS session_microseconds,
        sum(t.estimated_bytes)::bigint AS estimated_bytes
    FROM staged_touched t JOIN staged_hours h USING (realm_id, starts_at)
    WHERE h.is_folded
    GROUP BY t.user_key, h.month_starts_at, t.realm_id
    ORDER BY t.user_key
) t
ON u.user_key = t.user_key AND u.starts_at = t.starts_at
WHEN MATCHED THEN UPDATE SET
    received_packets = u.received_packets + t.received_packets,
    received_bytes = u.received_bytes + t.received_bytes,
    sent_packets = u.sent_packets + t.sent_packets, sent_bytes = u.sent_bytes + t.sent_bytes,
    peer_received_packets = u.peer_received_packets + t.peer_received_packets,
    peer_received_bytes = u.peer_received_bytes + t.peer_received_bytes,
    peer_sent_packets = u.peer_sent_packets + t.peer_sent_packets,
    peer_sent_bytes = u.peer_sent_bytes + t.peer_sent_bytes,
    sessions_started = u.sessions_started + t.sessions_started,
    sessions_ended = u.sessions_ended + t.sessions_ended,
    session_microseconds = u.session_microseconds + t.session_microseconds,
    estimated_bytes = u.estimated_bytes + t.estimated_bytes
WHEN NOT MATCHED THEN INSERT (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes, peer_received_packets,
    peer_received_bytes, peer_sent_packets, peer_sent_bytes, sessions_started, sessions_ended,
    session_microseconds, estimated_bytes
) VALUES (
    t.user_key, t.starts_at, t.realm_id,
    t.received_packets, t.received_bytes, t.sent_packets, t.sent_bytes, t.peer_received_packets,
    t.peer_received_bytes, t.peer_sent_packets, t.peer_sent_bytes, t.sessions_started,
    t.sessions_ended, t.session_microseconds, t.estimated_bytes
);

-- name: stage_folds
-- A scratch table for the hours that one roll-up folds into their days and months.
CREATE TEMP TABLE IF NOT EXISTS staged_folds (
    realm_id integer, starts_at timestamptz, day_starts_at timestamptz, month_starts_at timestamptz
) ON COMMIT DELETE ROWS;

-- name: stage_hours
-- A scratch table for the hours that one roll-up is about, with their days and months.
CREATE TEMP TABLE IF NOT EXISTS staged_hours (
    realm_id integer, starts_at timestamptz, ends_at timestamptz,
    day_starts_at timestamptz, day_ends_at timestamptz,
    month_starts_at timestamptz, month_ends_at timestamptz, is_folded boolean
) ON COMMIT DELETE ROWS;

-- name: stage_slices
-- A scratch table for the slices of realms' hours, or the whole hours, that one roll-up counts anew.
CREATE TEMP TABLE IF NOT EXISTS staged_slices (
    realm_id integer, starts_at timestamptz, from_at timestamptz, to_at timestamptz
) ON COMMIT DELETE ROWS;

-- name: stage_touched
-- A scratch table for the marks that one roll-up takes; empty again when the transaction ends.
CREATE TEMP TABLE IF NOT EXISTS staged_touched (LIKE accounting.usage_deltas) ON COMMIT DELETE ROWS;

-- name: take_slices
-- Takes the marks of touched slices, each once.
WITH taken AS (
    DELETE FROM accounting.peak_deltas RETURNING realm_id, starts_at, slice_at
)
SELECT DISTINCT realm_id, starts_at, slice_at FROM taken;

-- name: take_touched
-- Takes marks of touched hours: at most :limit of them, removed here and added up by user and hour.
WITH taken AS (
    DELETE FROM accounting.usage_deltas
    WHERE ctid = ANY (ARRAY(SELECT ctid FROM accounting.usage_deltas LIMIT :limit))
    RETURNING *
)
INSERT INTO staged_touched (
    realm_id, user_key, starts_at,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes,
    sessions_carried
)
SELECT realm_id, user_key, starts_at,
    sum(received_packets), sum(received_bytes), sum(sent_packets), sum(sent_bytes),
    sum(peer_received_packets), sum(peer_received_bytes), sum(peer_sent_packets), sum(peer_sent_bytes),
    sum(sessions_started), sum(sessions_ended), sum(session_microseconds), sum(estimated_bytes),
    sum(sessions_carried)
FROM taken
GROUP BY realm_id, user_key, starts_at;

-- name: touch_closed_periods
-- Marks the closed periods, by user, of the hours that one roll-up changed.
INSERT INTO accounting.periods_to_adjust (realm_id, period, user_key)
SELECT DISTINCT p.realm_id, p.period, t.user_key
FROM staged_touched t
JOIN accounting.periods p
    ON p.realm_id = t.realm_id AND t.starts_at >= p.starts_at AND t.starts_at < p.ends_at
WHERE p.closed_at IS NOT NULL;
