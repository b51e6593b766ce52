-- Whether evidence up to a cutoff does not all come before the rest: a key sighting that was settled
-- later than reports after it, or a gap among them that became known later.
WITH cutoffs AS (
    SELECT * FROM unnest(
        CAST(:sources AS smallint[]), CAST(:epochs AS integer[]), CAST(:positions AS bigint[]),
        CAST(:sighted_epochs AS integer[]), CAST(:sighted_positions AS bigint[]),
        CAST(:sighted AS bigint[])
    ) AS c (source_id, epoch, position, sighted_epoch, sighted_position, sighted)
)
SELECT EXISTS (
    SELECT FROM cutoffs c JOIN accounting.key_sightings k USING (source_id)
    WHERE (k.epoch, k.position) < (c.epoch, c.position)
        AND (k.epoch, k.position, k.sighting) > (c.sighted_epoch, c.sighted_position, c.sighted)
) OR EXISTS (
    SELECT FROM cutoffs c JOIN accounting.capture_gaps g USING (source_id)
    WHERE g.gap_id > CAST(:highest_gap AS bigint) AND (g.epoch, g.position) < (c.epoch, c.position)
)
