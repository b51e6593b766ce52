"""Archive of reports: a day (UTC) of reports and key sightings as Parquet, whole or absent.

In: the day's rows. Out: one file for each source and table, and their manifest, in a place of
exports. Invariants: the manifest comes last; what it says of the reports was counted by Postgres,
and an archive counts as written only once its files were read back and give the same numbers. It
has keys and no names or client addresses, so that erasing a person needs no change of an archive.

- ``write_archive``: writes a day, and reads it back.
- ``read_archive``: reads and checks archived files.
- ``archive_manifest``: names, and what a manifest says.
- ``day_contents``: what a day holds, counted by Postgres.
- ``archive_columns``: the columns of the files.
- ``archive_records``: which days were archived where.
"""
