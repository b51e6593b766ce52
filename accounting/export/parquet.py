"""Write rows as Parquet, in constant memory. Needs pyarrow, which the extra ``parquet`` installs.

Counters become int64, decimals stay exact, times are microseconds UTC.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Final

from accounting.errors import ConfigurationError
from accounting.export.copy_format import DECIMAL_PLACES, DECIMAL_PRECISION, Column
from accounting.installation import missing_extra

ROW_GROUP_SIZE: Final = 1 << 16
_BLOCK_BYTES: Final = 1 << 20
_DECIMAL_PLACES: Final = 6


def require_pyarrow() -> None:
    """Raise ConfigurationError if pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        raise ConfigurationError(missing_extra("Parquet needs", "pyarrow", "parquet"))


def write_parquet(columns: Sequence[Column], csv_chunks: Iterator[bytes], out: object) -> int:
    """Write CSV without a header to a binary file as Parquet; returns the number of rows.

    The sizes of row groups don't depend on the chunks, so that the same rows give the same bytes.
    """
    import pyarrow as pa  # noqa: PLC0415  # an extra
    import pyarrow.csv  # noqa: PLC0415
    import pyarrow.parquet  # noqa: PLC0415

    types = {column.name: _arrow_type(column) for column in columns}
    schema = pa.schema(list(types.items()))
    first_chunk = next(csv_chunks, b"")
    written = 0
    with pyarrow.parquet.ParquetWriter(
        pa.PythonFile(out, mode="w"), schema, compression="zstd"
    ) as writer:
        if not first_chunk:
            return 0
        reader = pyarrow.csv.open_csv(
            pa.PythonFile(_ChunkFile(first_chunk, csv_chunks), mode="r"),
            read_options=pyarrow.csv.ReadOptions(
                column_names=list(types), block_size=_BLOCK_BYTES, use_threads=False
            ),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types,
                true_values=["t"],
                false_values=["f"],
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        pending: list[pa.RecordBatch] = []
        pending_rows = 0
        for batch in reader:
            pending.append(batch)
            pending_rows += batch.num_rows
            while pending_rows >= ROW_GROUP_SIZE:
                table = pa.Table.from_batches(pending, schema)
                writer.write_table(table.slice(0, ROW_GROUP_SIZE), row_group_size=ROW_GROUP_SIZE)
                pending = table.slice(ROW_GROUP_SIZE).to_batches()
                pending_rows -= ROW_GROUP_SIZE
                written += ROW_GROUP_SIZE
        if pending_rows:
            writer.write_table(pa.Table.from_batches(pending, schema))
        return written + pending_rows


def _arrow_type(column: Column) -> object:
    import pyarrow as pa  # noqa: PLC0415  # an extra

    match column.type_name:
        case "bool":
            return pa.bool_()
        case "int8":
            return pa.int64()
        case "int4" | "int2":
            return pa.int32()
        case "numeric":
            return pa.decimal128(38, _DECIMAL_PLACES)
        case "exact_decimal":
            return pa.decimal128(DECIMAL_PRECISION, DECIMAL_PLACES)
        case "date":
            return pa.date32()
        case "timestamptz" | "utc_time":
            return pa.timestamp("us", tz="UTC")
        case _:
            return pa.string()


class _ChunkFile:
    """A file of chunks. Only its last read is short, so that pyarrow always reads equal blocks."""

    closed = False

    def __init__(self, first_chunk: bytes, chunks: Iterator[bytes]) -> None:
        self._buffer = bytearray(first_chunk)
        self._chunks = chunks

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._buffer) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._buffer += chunk
        size = len(self._buffer) if size < 0 else size
        part = bytes(self._buffer[:size])
        del self._buffer[:size]
        return part

    def close(self) -> None:
        self.closed = True
