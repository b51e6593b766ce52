-- A user's traffic by the day on which the session began: daloRADIUS' graphs of a user.
SELECT (acctstarttime AT TIME ZONE 'UTC')::date AS day, sum(acctinputoctets), sum(acctoutputoctets)
FROM reporting.radacct
WHERE username = %(username)s AND acctstoptime IS NOT NULL
GROUP BY day
ORDER BY day;
