"""Rows as Parquet, in constant memory. Needs pyarrow, the extra ``parquet``; loaded when called.

Owns the types of its columns: counters int64, exact decimals, times in microseconds UTC.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from accounting.errors import ConfigurationError
from accounting.export.export_query import Column

ROW_GROUP_SIZE: Final = 1 << 16
_BLOCK_BYTES: Final = 1 << 20
_UUID, _INT4, _INT2, _DATE, _TIMESTAMPTZ = 2950, 23, 21, 1082, 1184
_BOOL, _BIGINT, _NUMERIC = 16, 20, 1700
_SCALE_OF_SECONDS: Final = 6


def require_pyarrow() -> None:
    """Raise ConfigurationError where pyarrow is not installed."""
    try:
        import pyarrow as pa  # noqa: F401, PLC0415  # an extra
    except ImportError:
        raise ConfigurationError(
            "Parquet needs pyarrow, which is not installed: pip install 'turn-accounting[parquet]'"
        ) from None


def write_parquet(columns: Sequence[Column], chunks: Iterator[bytes], out: object) -> int:
    """Write rows that come as CSV without a header to a binary file; returns how many.

    Row groups have the same number of rows however the chunks fall, so that the same rows are the
    same bytes.
    """
    import pyarrow as pa  # noqa: PLC0415  # an extra
    import pyarrow.csv  # noqa: PLC0415
    import pyarrow.parquet  # noqa: PLC0415

    types = {one.name: _type(one) for one in columns}
    schema = pa.schema(list(types.items()))
    first = next(chunks, b"")
    written = 0
    with pyarrow.parquet.ParquetWriter(
        pa.PythonFile(out, mode="w"), schema, compression="zstd"
    ) as writer:
        if not first:
            return 0
        reader = pyarrow.csv.open_csv(
            pa.PythonFile(_Chunks(first, chunks), mode="r"),
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
        waiting: list[pa.RecordBatch] = []
        rows = 0
        for batch in reader:
            waiting.append(batch)
            rows += batch.num_rows
            while rows >= ROW_GROUP_SIZE:
                table = pa.Table.from_batches(waiting, schema)
                writer.write_table(table.slice(0, ROW_GROUP_SIZE), row_group_size=ROW_GROUP_SIZE)
                waiting = table.slice(ROW_GROUP_SIZE).to_batches()
                rows -= ROW_GROUP_SIZE
                written += ROW_GROUP_SIZE
        if rows:
            writer.write_table(pa.Table.from_batches(waiting, schema))
        return written + rows


def _type(column: Column) -> object:
    import pyarrow as pa  # noqa: PLC0415  # an extra

    match column.type_oid:
        case t if t == _BOOL:
            return pa.bool_()
        case t if t == _BIGINT:
            return pa.int64()
        case t if t in {_INT4, _INT2}:
            return pa.int32()
        case t if t == _NUMERIC:
            return pa.decimal128(38, _SCALE_OF_SECONDS)
        case t if t == _DATE:
            return pa.date32()
        case t if t == _TIMESTAMPTZ:
            return pa.timestamp("us", tz="UTC")
        case _:
            return pa.string()


class _Chunks:
    """Chunks as a file. A read is short at the end alone, so that blocks fall always alike."""

    closed = False

    def __init__(self, first: bytes, chunks: Iterator[bytes]) -> None:
        self._buffer = bytearray(first)
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
