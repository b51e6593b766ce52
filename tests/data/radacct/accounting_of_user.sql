-- A user's newest sessions: daloRADIUS' accounting by user.
SELECT radacctid, username, framedipaddress, acctstarttime, acctstoptime, acctsessiontime,
    acctinputoctets, acctoutputoctets, acctterminatecause, nasipaddress
FROM reporting.radacct
WHERE username = %(username)s
ORDER BY acctstarttime DESC, acctsessionid
LIMIT 25;
