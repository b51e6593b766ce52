"""Run the invoicer in children, each killed one line of code later than the one before.

    python -m tests.support.killed_invoicer INVOICER URL DIRECTORY

Each in a directory of its own, as a consumer of its own; run again afterwards, to its end. Prints
how often it was killed. A process of one thread, so that it may fork.
"""

import importlib.util
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

KILLED = 9
MOVES = ("consume", "_advance")
OFTEN = 2
"""A line is counted so often: what loops do a third time they do as they did the second."""


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("invoicer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def die_at(line: int, invoicer: str, client: str) -> Callable[[FrameType, str, Any], Any]:
    """Count the lines of the invoicer, and of the client's that move the cursor.

    Ends the process before the one of that number.
    """
    left = line
    passed = Counter[tuple[str, int]]()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        code = frame.f_code
        if code.co_filename != invoicer and (
            code.co_filename != client or code.co_name not in MOVES
        ):
            return None
        place = (code.co_filename, frame.f_lineno)
        if event == "line" and passed[place] < OFTEN:
            passed[place] += 1
            left -= 1
            if left == 0:
                os._exit(KILLED)
        return trace

    return trace


def in_child(work: Callable[[], None]) -> int:
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


def main(path: str, url: str, directory: Path) -> None:
    invoicer = load(path)
    client = str(sys.modules["accounting.feed.client"].__file__)
    line = 0
    while True:
        line += 1
        name = f"{line:05d}"

        def work(name: str = name) -> None:
            invoicer.run(url, directory / name, consumer=name, follow=False)

        def killed_work(line: int = line, work: Callable[[], None] = work) -> None:
            sys.settrace(die_at(line, path, client))
            work()

        code = in_child(killed_work)
        if code == 0:
            break
        assert code == KILLED, code
        assert in_child(work) == 0
    sys.stdout.write(f"{line - 1}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
