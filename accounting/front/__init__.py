"""A front: a database that reads and bills many cells as one.

A cell is a complete installation with its own Postgres. The front has foreign tables over the views
of its cells (``postgres_fdw``), and the views of ``reporting`` over those.
"""
