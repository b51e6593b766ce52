-- Marks of touched hours that wait for the roll-up, counted up to :limit.
SELECT count(*) FROM (SELECT FROM accounting.touched_hours LIMIT :limit) waiting
