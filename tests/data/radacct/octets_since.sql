-- sqlcounter for data, with a reset: bytes of the sessions that began since then.
SELECT coalesce(sum(acctinputoctets + acctoutputoctets), 0)
FROM reporting.radacct
WHERE username = %(username)s AND extract(epoch FROM acctstarttime) > %(reset)s;
