-- How far each source is settled, and the last report that it has of a span of time.
SELECT s.source_id, s.source, s.retired_at IS NOT NULL AS is_retired, t.until AS settled_until,
    l.epoch, l.position, l.received_at,
    coalesce((l.epoch, l.position) > (t.epoch, t.position), false) AS is_unsettled,
    l.epoch IS NOT NULL AND EXISTS (
        SELECT FROM accounting.reports r
        WHERE r.source_id = s.source_id AND r.received_at >= CAST(:until AS timestamptz)
            AND (r.epoch, r.position) < (l.epoch, l.position)
    ) AS is_out_of_order
FROM accounting.sources s
LEFT JOIN accounting.settling t USING (source_id)
LEFT JOIN LATERAL (
    SELECT r.epoch, r.position, r.received_at FROM accounting.reports r
    WHERE r.source_id = s.source_id
        AND r.received_at >= CAST(:since AS timestamptz)
        AND r.received_at < CAST(:until AS timestamptz)
    ORDER BY r.epoch DESC, r.position DESC LIMIT 1
) l ON true
ORDER BY s.source
