"""Export: rows of the views of ``reporting`` as CSV, JSON Lines or Parquet; charges in FOCUS.

In: a selection. Out: a stream, or files and their manifest in a place. Invariants: a selection
whose rows may still change is refused, the same books give the same bytes, and a manifest always
describes the files beside it. Memory stays constant: the server sorts, sums and formats.

- ``export``: writes a selection to a place or a stream.
- ``selection``: which rows.
- ``export_query``: reads them, in one snapshot.
- ``focus_terms``, ``focus_schema``: the terms of a FOCUS export, its columns and metadata; its
  rows are in ``queries.sql``.
- ``copy_format``: how COPY writes rows, and spreadsheet-safe CSV cells.
- ``parquet``: turns COPY's CSV into Parquet; ``parquet_process`` in a process of its own.
- ``manifest``: describes and checks exported files.
- ``place``: what a place of files is; ``local_directory``, ``object_store``, ``sftp_directory``.
- ``place_address``: the place of a path or URL.
- ``store_errors``: what their libraries raise, as one line.
- ``atomic_file``: replaces local files all at once.
- ``partition_path``: the directories of a partitioned table.
"""
