-- How many users are online.
SELECT count(DISTINCT username) FROM reporting.radacct WHERE acctstoptime IS NULL;
