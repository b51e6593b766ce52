-- Sessions that began on a day, by hour and realm: daloRADIUS' graphs of logins, by group.
SELECT groupname, extract(hour FROM acctstarttime AT TIME ZONE 'UTC')::integer AS hour, count(*)
FROM reporting.radacct
WHERE acctstarttime >= %(since)s AND acctstarttime < %(until)s
GROUP BY groupname, hour
ORDER BY groupname COLLATE "C", hour;
