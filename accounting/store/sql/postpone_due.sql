-- Says when a life that was looked at and still lives must be looked at again.
UPDATE accounting.sessions SET due_at = :due_at
WHERE session_id = :session_id AND user_key = :user_key AND ended_at IS NULL
