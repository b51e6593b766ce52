"""Releasing the pages of libraries: the process needs less memory, and goes on."""

import subprocess
import sys
import textwrap

from tests.support.service import ROOT

PROGRAM = """
    import re
    import psycopg
    from pathlib import Path
    from accounting.ops.library_pages import release_library_pages

    def file_kilobytes():
        return int(re.search(r"RssFile:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

    before = file_kilobytes()
    release_library_pages()
    print(before - file_kilobytes())
    print(psycopg.sql.Identifier('a"b').as_string())
"""


def test_released_pages_come_back_when_they_are_used() -> None:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    released, quoted = result.stdout.split()
    assert int(released) > 1000
    assert quoted == '"a""b"'
