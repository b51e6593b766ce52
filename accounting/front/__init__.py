"""A front: a database that reads and bills many cells as one.

A cell is a complete installation with its own Postgres. The front has foreign tables over the views
of its cells (``postgres_fdw``), and the views of ``reporting`` over those.

In: the views and tables of the cells. Out: the front's own statements, adjustments, feed, peaks and
states of limits. Invariant: what all cells have, once; nothing while a cell does not answer.

- ``join``, ``membership``, ``foreign_server``, ``cell_views``: cells come and go.
- ``cells``, ``status``: which there are, connections to them, and what is wrong with them.
- ``shared``: what all cells have in common. ``billing``, ``feed``, ``limits``, ``peaks``: what the
  front makes of them.
- ``verify``, ``trace``: down into the cells.
"""
