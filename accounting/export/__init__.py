"""Export: rows of the views of ``reporting`` as CSV, JSON Lines or Parquet; charges in FOCUS.

In: a selection. Out: a stream, or a file beside its manifest. Invariants: a selection whose rows
may still change is refused, the same books give the same bytes, and a manifest always describes
the file beside it. Memory stays constant: the server sorts, sums and formats.

- ``export``: writes a selection to a directory or a stream.
- ``selection``: which rows.
- ``export_query``: reads them, in one snapshot.
- ``focus_terms``, ``focus_schema``: the terms of a FOCUS export, its columns and metadata; its
  rows are in ``queries.sql``.
- ``copy_format``: how COPY writes rows, and spreadsheet-safe CSV cells.
- ``parquet``: turns COPY's CSV into Parquet; ``parquet_process`` in a process of its own.
- ``manifest``: describes and checks an exported file.
- ``atomic_file``: replaces files all at once.
"""
