-- Says when the staged lives, which were looked at and still live, must be looked at again.
UPDATE accounting.sessions e SET due_at = d.due_at
FROM staged_due d
WHERE e.session_id = d.session_id AND e.user_key = d.user_key AND e.ended_at IS NULL
