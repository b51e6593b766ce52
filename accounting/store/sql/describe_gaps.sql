-- Says of each closed gap what became of the sessions that lived through it: again for three hours,
-- longer than any lifetime, and then no more. Only sessions that began within the day before.
UPDATE accounting.capture_gaps g
SET outcome = o.outcome
FROM (
    SELECT c.gap_id, CASE WHEN count(e.session_id) = 0 THEN 'no session lived through it'
        ELSE format('of %s sessions that lived through it %s made exact by their totals, '
            || '%s kept by their keys, %s expired, %s still live',
            count(e.session_id),
            count(*) FILTER (WHERE e.client_totals > 0 AND e.ended_at IS NOT NULL),
            count(*) FILTER (WHERE EXISTS (
                SELECT FROM accounting.key_sightings k
                WHERE k.source_id = c.source_id AND k.epoch >= c.epoch
                    AND k.seen_at BETWEEN c.from_at AND c.to_at + interval '1 hour'
                    AND (k.username_key, k.allocation_id, k.database)
                        = (e.username_key, e.allocation_id, e.database))),
            count(*) FILTER (WHERE e.client_totals = 0 AND e.end_cause = 'expired'),
            count(*) FILTER (WHERE e.ended_at IS NULL))
        END AS outcome
    FROM accounting.capture_gaps c
    JOIN accounting.settling t ON t.source_id = c.source_id AND t.until > c.to_at
    LEFT JOIN LATERAL (
        SELECT s.* FROM accounting.realms r
        CROSS JOIN LATERAL (  -- OFFSET 0: realm by realm along the index
            SELECT * FROM accounting.sessions
            WHERE realm_id = r.realm_id
                AND started_at BETWEEN c.from_at - interval '1 day' AND c.from_at
            OFFSET 0
        ) s
        WHERE s.source_id = c.source_id AND s.vouched
            -- One that expired ended at its last sign of life, and was awaited until its expiry.
            AND (s.ended_at IS NULL OR s.ended_at >= c.from_at
                OR (s.end_cause = 'expired' AND s.expires_at >= c.from_at))
    ) e ON true
    WHERE c.outcome = '' OR c.to_at > now() - interval '3 hours'
    GROUP BY c.gap_id
) o
WHERE o.gap_id = g.gap_id AND o.outcome <> g.outcome
