-- The days (UTC) that have a partition of reports, the oldest first.
SELECT to_date(substr(c.relname, 9), 'YYYYMMDD') AS day
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = CAST('accounting.reports' AS regclass) AND c.relname ~ '^reports_[0-9]{8}$'
ORDER BY day
