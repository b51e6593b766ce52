-- The users with most traffic between two times, of sessions that have ended: daloRADIUS' top users.
SELECT username, max(acctstoptime), sum(acctsessiontime), sum(acctinputoctets), sum(acctoutputoctets)
FROM reporting.radacct
WHERE acctstoptime IS NOT NULL AND acctstarttime > %(since)s AND acctstarttime < %(until)s
GROUP BY username
ORDER BY sum(acctinputoctets + acctoutputoctets) DESC, username COLLATE "C"
LIMIT 10;
