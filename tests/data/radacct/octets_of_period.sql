-- FreeRADIUS' usage of a period: bytes of each user's sessions that ended since, or are open.
SELECT username, sum(acctinputoctets), sum(acctoutputoctets)
FROM (
    SELECT username, acctinputoctets, acctoutputoctets FROM reporting.radacct
    WHERE acctstoptime > %(since)s
    UNION ALL
    SELECT username, acctinputoctets, acctoutputoctets FROM reporting.radacct
    WHERE acctstoptime IS NULL
) AS sessions
GROUP BY username
ORDER BY username COLLATE "C";
