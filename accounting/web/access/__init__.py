"""Who may read what: tokens, browser sessions, and the part of the books that each may read."""
