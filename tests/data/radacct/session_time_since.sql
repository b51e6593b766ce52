-- sqlcounter, daily, weekly and monthly: seconds online since the reset, of sessions cut there.
SELECT coalesce(sum(acctsessiontime
    - greatest(%(reset)s - extract(epoch FROM acctstarttime), 0)), 0)
FROM reporting.radacct
WHERE username = %(username)s
    AND extract(epoch FROM acctstarttime) + acctsessiontime > %(reset)s;
