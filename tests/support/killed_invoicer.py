"""Run the invoicer many times, killed one line of code later each time, then restarted to its end.

    python -m tests.support.killed_invoicer INVOICER URL DIRECTORY OWNER_URL STEP

Kills it before each STEP-th line. Each run has its own directory, and a consumer that is removed
afterwards. Prints the number of kills, and how far the consumers came. This process has one thread,
so that it can fork.
"""

import importlib.util
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Final

import psycopg

KILLED_EXIT_CODE: Final = 9
CURSOR_FUNCTIONS: Final = ("_consume", "_advance")
"""Functions of the feed client that move the cursor."""
MAX_COUNT_PER_LINE: Final = 2
"""Further passes over a line of the invoicer, in a loop, are like the second."""
MAX_COUNT_PER_CLIENT_LINE: Final = 1


def load_module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("invoicer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exit_at_line(
    line_number: int, invoicer_path: str, client_path: str
) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that ends the process before the n-th executed line.

    It counts the lines of the invoicer, and of the client's CURSOR_FUNCTIONS.
    """
    lines_left = line_number
    passes = Counter[tuple[str, int]]()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines_left
        code = frame.f_code
        if code.co_filename != invoicer_path and (
            code.co_filename != client_path or code.co_name not in CURSOR_FUNCTIONS
        ):
            return None
        location = (code.co_filename, frame.f_lineno)
        is_client = code.co_filename == client_path
        max_count = MAX_COUNT_PER_CLIENT_LINE if is_client else MAX_COUNT_PER_LINE
        if event == "line" and passes[location] < max_count:
            passes[location] += 1
            lines_left -= 1
            if lines_left == 0:
                os._exit(KILLED_EXIT_CODE)
        return trace

    return trace


def run_in_child(work: Callable[[], None]) -> int:
    """Run a function in a forked process; returns its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            sys.settrace(None)
            if code:
                traceback.print_exc()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def remove_consumer(connection: psycopg.Connection, name: str) -> int:
    """Remove a consumer; returns its cursor."""
    row = connection.execute(
        "DELETE FROM accounting.feed_consumers WHERE consumer = %s RETURNING seq", [name]
    ).fetchone()
    assert row is not None
    return int(row[0])


def main(path: str, url: str, directory: Path, owner_url: str, step: int) -> None:
    invoicer = load_module(path)
    client_path = str(sys.modules["accounting.feed.client"].__file__)
    kill_count = 0
    cursors = set[int]()
    # The children inherit the connection and don't touch it.
    connection = psycopg.connect(owner_url, autocommit=True)
    while True:
        line_number = kill_count * step + 1
        name = f"{line_number:05d}"

        def run(name: str = name) -> None:
            invoicer.run(url, directory / name, consumer=name, follow=False)

        def run_until_line(line_number: int = line_number, run: Callable[[], None] = run) -> None:
            sys.settrace(exit_at_line(line_number, path, client_path))
            run()

        code = run_in_child(run_until_line)
        if code != 0:
            assert code == KILLED_EXIT_CODE, code
            assert run_in_child(run) == 0
            kill_count += 1
        cursors.add(remove_consumer(connection, name))
        if code == 0:
            break
    connection.close()
    sys.stdout.write(f"{kill_count} {cursors}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
