-- sqlcounter expire_on_login: when the first session began; FreeRADIUS takes seconds until now.
SELECT acctstarttime FROM reporting.radacct WHERE username = %(username)s
ORDER BY acctstarttime LIMIT 1;
