-- Who is online, with the traffic so far: daloRADIUS' page of online users, searched by name.
SELECT username, framedipaddress, callingstationid, acctstarttime, acctsessiontime, nasipaddress,
    calledstationid, acctsessionid, acctinputoctets, acctoutputoctets
FROM reporting.radacct
WHERE acctstoptime IS NULL AND username LIKE %(pattern)s
ORDER BY acctstarttime DESC, acctsessionid
LIMIT 100;
