"""The commands, one module for each group of them; `cli` mounts them and is the way in.

`arguments` says what they are told, `terminal` and `views` how they answer. A command reads its
arguments, calls a job or a query, and shows what came of it: it decides nothing about the books.
"""
