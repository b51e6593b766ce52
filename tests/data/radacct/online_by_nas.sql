-- How many users are online on each server that the tool knows: names of its table nas are text.
SELECT nas.shortname, count(DISTINCT username)
FROM (VALUES ('192.0.2.1', 'turn-1'), ('192.0.2.2', 'turn-2'), ('2001:db8::53', 'turn-6'))
    AS nas (nasname, shortname)
JOIN reporting.radacct ON nasipaddress = nas.nasname::inet
WHERE acctstoptime IS NULL
GROUP BY nas.shortname
ORDER BY nas.shortname;
