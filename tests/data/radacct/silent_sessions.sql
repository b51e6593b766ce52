-- Open sessions without a report for a time, as clean-up scripts look for them.
SELECT acctuniqueid FROM reporting.radacct
WHERE acctstoptime IS NULL AND acctupdatetime < %(silent_since)s
ORDER BY acctuniqueid;
