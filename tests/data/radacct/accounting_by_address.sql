-- The sessions of a client address: daloRADIUS' accounting by address.
SELECT acctuniqueid, username, acctstarttime, clientport
FROM reporting.radacct
WHERE framedipaddress = %(address)s
ORDER BY acctuniqueid;
