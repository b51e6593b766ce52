"""The directories of a partition, as Hive names them: ``realm=example.org/period=2026-11-01``.

Hive, Spark and Trino take ``%XX`` for one character, DuckDB and pyarrow for one byte. So only ASCII
characters are written like that, those that Hive's own writer escapes; others stand as they are.
"""

from collections.abc import Sequence
from typing import Final

from accounting.export.export_query import Partition

NO_VALUE: Final = "__HIVE_DEFAULT_PARTITION__"
"""What Hive writes for NULL and for an empty text, which could not be a directory's name."""
_ESCAPED: Final = {ord(character) for character in "\"#%'*/:=?\\{[]^"} | {*range(0x20), 0x7F}


def partition_path(columns: Sequence[str], partition: Partition) -> str:
    """The path of a partition within its table. ``columns``: their names."""
    period = NO_VALUE if partition.period is None else partition.period.isoformat()
    realm_column, period_column = columns
    return f"{realm_column}={partition_value(partition.realm)}/{period_column}={period}"


def partition_value(value: str) -> str:
    """A text as the value in a directory's name."""
    if not value:
        return NO_VALUE
    if value == NO_VALUE:
        return value.replace("_", "%5F", 1)
    return "".join(
        f"%{ord(character):02X}" if ord(character) in _ESCAPED else character for character in value
    )
