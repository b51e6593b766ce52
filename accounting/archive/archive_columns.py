"""The columns of archived files. Texts are spelled as in the views of ``reporting``."""

from typing import Final

from accounting.export.copy_format import Column

REPORTS: Final = "reports"
KEY_SIGHTINGS: Final = "key_sightings"

KINDS: Final = ("new", "refreshed", "deleted", "interim", "total")
"""In order of their numbers, which begin with 1."""
SIDES: Final = ("client", "peer")
"""In order of their numbers, which begin with 0."""
SUMMED: Final = ("received_packets", "received_bytes", "sent_packets", "sent_bytes")

REPORT_COLUMNS: Final = (
    Column("epoch", "int4"),
    Column("position", "int8"),
    Column("received_at", "timestamptz"),
    Column("time_estimated", "bool"),
    Column("database", "int4"),
    Column("realm", "text"),
    Column("username_key", "uuid"),
    Column("user_key", "uuid"),
    Column("allocation_id", "text"),
    Column("kind", "text"),
    Column("side", "text"),
    Column("lifetime", "int4"),
    Column("transport", "text"),
    Column("server_address", "text"),
    *(Column(name, "int8") for name in SUMMED),
)
SIGHTING_COLUMNS: Final = (
    Column("epoch", "int4"),
    Column("position", "int8"),
    Column("sighting", "int8"),
    Column("database", "int4"),
    Column("realm", "text"),
    Column("username_key", "uuid"),
    Column("user_key", "uuid"),
    Column("allocation_id", "text"),
    Column("scan_started_at", "timestamptz"),
    Column("seen_at", "timestamptz"),
    Column("idle_seconds", "int4"),
)
