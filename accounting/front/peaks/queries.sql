-- name: peaks_to_read
-- Since when the cells are asked for hours whose peaks changed, and the time now. Since ever, and all
-- are compared, if that was not done for a day. An hour more than since the last time: a cell's clock
-- may differ, and a transaction may commit late.
SELECT clock_timestamp()::text AS now, p.is_all,
    CASE WHEN p.is_all THEN '-infinity' ELSE f.peaks_read_until - interval '1 hour' END::text AS since
FROM accounting.front f
CROSS JOIN LATERAL (
    SELECT f.peaks_compared_at < clock_timestamp() - interval '1 day' AS is_all
) p;

-- name: peaks_were_read
-- Records up to when the hours whose peaks changed are counted.
UPDATE accounting.front SET peaks_read_until = CAST(:now AS timestamptz),
    peaks_compared_at = CASE WHEN :is_all THEN CAST(:now AS timestamptz) ELSE peaks_compared_at END;

-- name: changed_peak_hours
-- In a cell: the hours whose peaks changed since a time.
SELECT realm, starts_at, version::text FROM cell.peak_hours
WHERE changed_at >= CAST(:since AS timestamptz);

-- name: hours_to_count
-- Of these hours of a cell, those that were not counted with these versions.
SELECT t.realm, t.starts_at
FROM unnest(CAST(:realms AS text[]), CAST(:starts AS timestamptz[]), CAST(:versions AS text[]))
    AS t (realm, starts_at, version)
LEFT JOIN accounting.front_peak_hours h ON h.realm = t.realm AND h.starts_at = t.starts_at
WHERE h.counted_from ->> CAST(:cell AS text) IS DISTINCT FROM t.version;

-- name: vanished_peak_hours
-- The hours that were counted with a cell, and are not among those that it has.
SELECT h.realm, h.starts_at FROM accounting.front_peak_hours h
WHERE jsonb_exists(h.counted_from, CAST(:cell AS text)) AND NOT EXISTS (
    SELECT FROM unnest(CAST(:realms AS text[]), CAST(:starts AS timestamptz[])) AS t (realm, starts_at)
    WHERE t.realm = h.realm AND t.starts_at = h.starts_at);

-- name: peak_hours_of_cell
-- In a cell: the versions and ends of these hours, as far as it has them.
SELECT t.number, h.version::text, h.ends_at, h.has_slices, h.is_changing
FROM unnest(
    CAST(:numbers AS integer[]), CAST(:realms AS text[]), CAST(:starts AS timestamptz[])
) AS t (number, realm, starts_at)
JOIN cell.peak_hours h ON h.realm = t.realm AND h.starts_at = t.starts_at;

-- name: peak_names_of_cell
-- In a cell: by what the sessions of these hours are counted.
SELECT DISTINCT t.number, s.dimension, s.name
FROM unnest(
    CAST(:numbers AS integer[]), CAST(:realms AS text[]), CAST(:starts AS timestamptz[])
) AS t (number, realm, starts_at)
JOIN cell.realm_numbers r ON r.realm = t.realm
JOIN cell.peak_slices s ON s.realm_id = r.realm_id AND s.starts_at = t.starts_at
WHERE s.session_peak <> 0 OR s.session_delta <> 0;

-- name: peak_slices_of_cell
-- In a cell: slices of these hours, each as its start, delta and peak in Postgres' binary format, one
-- behind the other.
SELECT t.number, s.dimension, s.name, string_agg(
    timestamptz_send(s.slice_at) || int8send(s.session_delta) || int8send(s.session_peak), '')
FROM (
    SELECT DISTINCT k.number, k.realm, k.starts_at FROM unnest(
        CAST(:numbers AS integer[]), CAST(:realms AS text[]), CAST(:starts AS timestamptz[])
    ) AS k (number, realm, starts_at)
) t
JOIN cell.realm_numbers r ON r.realm = t.realm
JOIN cell.peak_slices s ON s.realm_id = r.realm_id AND s.starts_at = t.starts_at
WHERE (t.number, s.dimension, s.name) IN (
    SELECT k.number, k.dimension, k.name FROM unnest(
        CAST(:numbers AS integer[]), CAST(:dimensions AS text[]), CAST(:names AS text[])
    ) AS k (number, dimension, name))
GROUP BY t.number, s.dimension, s.name;

-- name: peak_steps_of_cell
-- In a cell: the starts and ends of sessions in these spans, as read_slice_steps.
SELECT t.number, t.starts_at, greatest(
        t.starts_at, date_bin(make_interval(secs => :slice_seconds), e.started_at, 'epoch')
    ) AS slice_at, e.server_address, e.transport, false AS is_end,
    string_agg(timestamptz_send(e.started_at), '') AS times
FROM unnest(
    CAST(:numbers AS integer[]), CAST(:realms AS text[]), CAST(:starts AS timestamptz[]),
    CAST(:froms AS timestamptz[]), CAST(:untils AS timestamptz[])
) AS t (number, realm, starts_at, from_at, to_at)
JOIN cell.realm_numbers r ON r.realm = t.realm
CROSS JOIN LATERAL (
    SELECT s.started_at, s.ended_at, s.server_address, s.transport FROM cell.session_spans s
    WHERE s.realm_id = r.realm_id AND s.started_at >= t.from_at AND s.started_at < t.to_at
    OFFSET 0
) e
WHERE e.ended_at IS NULL OR e.ended_at > e.started_at
GROUP BY t.number, t.starts_at, slice_at, e.server_address, e.transport
UNION ALL
SELECT t.number, t.starts_at, greatest(
        t.starts_at, date_bin(make_interval(secs => :slice_seconds), e.ended_at, 'epoch')
    ) AS slice_at, e.server_address, e.transport, true, string_agg(timestamptz_send(e.ended_at), '')
FROM unnest(
    CAST(:numbers AS integer[]), CAST(:realms AS text[]), CAST(:starts AS timestamptz[]),
    CAST(:froms AS timestamptz[]), CAST(:untils AS timestamptz[])
) AS t (number, realm, starts_at, from_at, to_at)
JOIN cell.realm_numbers r ON r.realm = t.realm
CROSS JOIN LATERAL (
    SELECT s.started_at, s.ended_at, s.server_address, s.transport FROM cell.session_spans s
    WHERE s.realm_id = r.realm_id AND s.ended_at >= t.from_at AND s.ended_at < t.to_at
    OFFSET 0
) e
WHERE e.ended_at > greatest(e.started_at, t.starts_at)
GROUP BY t.number, t.starts_at, slice_at, e.server_address, e.transport;

-- name: carried_in_cell
-- In a cell: how many sessions were open when these hours started.
SELECT t.number, c.server_address, c.transport, count(*)
FROM unnest(
    CAST(:numbers AS integer[]), CAST(:realms AS text[]), CAST(:starts AS timestamptz[])
) AS t (number, realm, starts_at)
JOIN cell.realm_numbers r ON r.realm = t.realm
JOIN cell.carried_sessions c ON c.realm_id = r.realm_id AND c.starts_at = t.starts_at
GROUP BY t.number, c.server_address, c.transport;

-- name: delete_peaks
-- Deletes what was counted of these hours.
WITH hours AS MATERIALIZED (
    SELECT realm, starts_at
    FROM unnest(CAST(:realms AS text[]), CAST(:starts AS timestamptz[])) AS t (realm, starts_at)
),
deleted AS (
    DELETE FROM accounting.front_peak_hours h USING hours t
    WHERE h.realm = t.realm AND h.starts_at = t.starts_at
)
DELETE FROM accounting.front_peaks p USING hours t
WHERE p.realm = t.realm AND p.starts_at = t.starts_at;

-- name: insert_peak_hours
-- Records from what these hours were counted.
INSERT INTO accounting.front_peak_hours (realm, starts_at, counted_from)
SELECT t.realm, t.starts_at, CAST(t.counted_from AS jsonb) FROM unnest(
    CAST(:realms AS text[]), CAST(:starts AS timestamptz[]), CAST(:counted_from AS text[])
) AS t (realm, starts_at, counted_from)
WHERE t.counted_from <> '{}';

-- name: insert_peaks
-- Inserts the peaks of hours.
INSERT INTO accounting.front_peaks (realm, dimension, name, starts_at, peak_sessions)
SELECT * FROM unnest(
    CAST(:realms AS text[]), CAST(:dimensions AS text[]), CAST(:names AS text[]),
    CAST(:starts AS timestamptz[]), CAST(:peaks AS bigint[]));

-- name: counted_peak_hours
-- The hours that were counted after one of them, in order.
SELECT realm, starts_at, counted_from::text FROM accounting.front_peak_hours
WHERE (realm, starts_at) > (:after_realm, CAST(:after_start AS timestamptz))
    AND realm = coalesce(CAST(:realm AS text), realm)
ORDER BY realm, starts_at LIMIT :most;

-- name: stored_peaks
-- The peaks that were counted of these hours.
SELECT t.number, p.dimension, p.name, p.peak_sessions
FROM unnest(
    CAST(:numbers AS integer[]), CAST(:realms AS text[]), CAST(:starts AS timestamptz[])
) AS t (number, realm, starts_at)
JOIN accounting.front_peaks p ON p.realm = t.realm AND p.starts_at = t.starts_at;
