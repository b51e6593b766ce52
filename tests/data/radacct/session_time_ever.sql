-- sqlcounter without a reset, for Max-All-Session: seconds online.
SELECT coalesce(sum(acctsessiontime), 0) FROM reporting.radacct WHERE username = %(username)s;
