-- A user's sessions between two times: daloRADIUS' accounting by date.
SELECT count(radacctid), sum(acctsessiontime), sum(acctinputoctets), sum(acctoutputoctets)
FROM reporting.radacct
WHERE username = %(username)s AND acctstarttime > %(from)s AND acctstarttime < %(to)s;
