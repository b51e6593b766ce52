-- FreeRADIUS' simultaneous use: the number of sessions that a user has open.
SELECT count(radacctid) FROM reporting.radacct
WHERE username = %(username)s AND acctstoptime IS NULL;
