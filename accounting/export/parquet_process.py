"""Writes Parquet in a process of its own: pyarrow takes 40 MB, which a server would keep.

The child reads the columns from its argument and the rows as CSV; it has no database.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import copyfileobj
from typing import Final

from accounting.errors import AccountingError
from accounting.export.atomic_file import ByteSink
from accounting.export.copy_format import Column
from accounting.export.parquet import write_parquet

MODULE: Final = "accounting.export.parquet_process"
CHUNK_BYTES: Final = 1 << 16


def write_parquet_in_child(
    columns: Sequence[Column], csv_chunks: Iterator[bytes], out: ByteSink
) -> None:
    """As :func:`write_parquet`, and the same bytes. Raises AccountingError if the child fails."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with (
        tempfile.TemporaryFile() as file,
        subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE, json.dumps(columns)],
            stdin=subprocess.PIPE,
            stdout=file,
            env=environment,
        ) as child,
    ):
        assert child.stdin is not None
        try:
            for chunk in csv_chunks:
                child.stdin.write(chunk)
            child.stdin.close()
            code = child.wait()
        except BrokenPipeError:
            code = child.wait()
        finally:
            child.kill()
        if code != 0:
            raise AccountingError(f"Parquet was not written: its process exited with {code}")
        file.seek(0)
        copyfileobj(file, out)


def _chunks() -> Iterator[bytes]:
    while chunk := sys.stdin.buffer.read(CHUNK_BYTES):
        yield chunk


if __name__ == "__main__":
    write_parquet(
        [Column(*column) for column in json.loads(sys.argv[1])], _chunks(), sys.stdout.buffer
    )
