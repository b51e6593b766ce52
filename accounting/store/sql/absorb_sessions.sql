-- Removes the limbo lives whose usage another life took over: they were never sessions.
DELETE FROM accounting.sessions e USING staged_absorbed a WHERE e.session_id = a.absorbed_id
