-- What settling, the roll-up and late usage have still to do, of what is loaded and past: zero when they rest.
SELECT
    (SELECT count(*) FROM (SELECT FROM accounting.touched_hours LIMIT 1) marks)
    + (SELECT count(*) FROM (SELECT FROM accounting.touched_periods LIMIT 1) periods)
    + (SELECT count(*) FROM (
        SELECT FROM accounting.sessions e
        JOIN accounting.settling t USING (source_id)
        WHERE e.due_at < t.until AND e.ended_at IS NULL AND e.standing = 1
        LIMIT 1
    ) due)
