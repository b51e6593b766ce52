-- The open sessions of a server that started before a time, as FreeRADIUS closes them when it restarts.
SELECT acctuniqueid FROM reporting.radacct
WHERE acctstoptime IS NULL AND nasipaddress = %(nas)s AND acctstarttime <= %(started_before)s
ORDER BY acctuniqueid;
