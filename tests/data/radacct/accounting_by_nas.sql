-- What a server had between two times, by user: daloRADIUS' accounting by server.
SELECT username, count(*), sum(acctinputoctets + acctoutputoctets)
FROM reporting.radacct
WHERE nasipaddress = %(nas)s AND acctstarttime > %(since)s AND acctstarttime < %(until)s
GROUP BY username
ORDER BY username COLLATE "C";
