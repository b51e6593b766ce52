-- The sessions that a user has open, which FreeRADIUS checks with the server.
SELECT radacctid, acctsessionid, username, nasipaddress, nasportid, framedipaddress,
    callingstationid, framedprotocol
FROM reporting.radacct
WHERE username = %(username)s AND acctstoptime IS NULL
ORDER BY acctsessionid;
