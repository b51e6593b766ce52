-- sqlcounter for data, without a reset.
SELECT coalesce(sum(acctinputoctets + acctoutputoctets), 0)
FROM reporting.radacct WHERE username = %(username)s;
