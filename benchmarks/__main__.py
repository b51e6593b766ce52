"""``make bench``: measures the parts, prints tables and, with --json, writes every figure.

    python -m benchmarks                       everything, as docs/performance.md shows it
    python -m benchmarks --only load settle    some parts
    python -m benchmarks --quick               tiny sizes, which only show that it runs
    python -m benchmarks --only growth --reports 100000000

Each part prints its table when it is done; parts that compare sizes print columns.
"""

import argparse
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from accounting.domain import session_fold
from accounting.logs import configure_logging
from benchmarks import (
    capture_burst,
    cells,
    commands,
    dimensions,
    export,
    growth,
    idle,
    limits,
    load,
    memory,
    path,
    settle,
    sources,
    storage,
    web,
)
from benchmarks.figures import Figure, format_figures, json_line
from benchmarks.fixture import durable_postgres, server_settings
from benchmarks.measure import log_progress
from benchmarks.scale import FULL, QUICK, Scale
from benchmarks.workload import Workload
from tests.support.servers import PostgresServer

Part = Callable[[PostgresServer, Scale], list[Figure]]
PARTS: Final[Mapping[str, Part]] = {
    "capture": capture_burst.run,
    "load": load.run,
    "settle": settle.run,
    "dimensions": dimensions.run,
    "limits": limits.run,
    "export": export.run,
    "storage": storage.run,
    "memory": memory.run,
    "idle": idle.run,
    "commands": commands.run,
    "sources": sources.run,
    "cells": cells.run,
    "growth": growth.run,
    "path": path.run,
    "web": web.run,
}


def main() -> None:
    given = arguments().parse_args()
    scale = chosen_scale(given)
    configure_logging("error")
    settings = dict(setting.split("=", 1) for setting in given.postgres)
    with durable_postgres(settings) as server:
        measure(server, given.only or PARTS, scale, given.json)


def measure(
    server: PostgresServer, parts: Iterable[str], scale: Scale, json_lines: Path | None
) -> None:
    """Run the parts; print the table of each and append its figures to the file, if given."""
    about = describe(server, scale)
    for name, value in about.items():
        print(f"{name}: {value}")
    if json_lines:
        json_lines.write_text(json_line(about) + "\n")
    for name in parts:
        log_progress(f"{name} ...")
        figures = PARTS[name](server, scale)
        for title, rows in groupby(figures, lambda figure: figure.part.partition(",")[0]):
            print(f"\n{title}\n\n{format_figures(list(rows))}", flush=True)
        if json_lines:
            with json_lines.open("a") as lines:
                lines.writelines(f"{json_line(figure.as_json())}\n" for figure in figures)


def describe(server: PostgresServer, scale: Scale) -> dict[str, Any]:
    """The machine, the server and the workload of the figures."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory": f"{memory_bytes / 2**30:.0f} GiB",
        "python": f"{platform.python_version()}, {_compiled()}",
        "postgres": ", ".join(f"{name} {value}" for name, value in server_settings(server).items()),
        "mix": Workload(scale.open_sessions, scale.users).describe(),
        "rounds": scale.rounds,
    }


def _compiled() -> str:
    """Whether the modules that run for every event are compiled (hatch_build.py)."""
    is_python = Path(str(session_fold.__file__)).suffix == ".py"
    return "without compiled modules" if is_python else "with compiled modules"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every figure, one a line")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--rate", type=float, help="of the whole path, events a second")
    parser.add_argument("--seconds", type=float, help="of the whole path")
    parser.add_argument("--search-seconds", type=float, help="a step of the search; 0: none")
    parser.add_argument("--reports", type=int, help="the largest history of growth")
    parser.add_argument(
        "--keep", dest="kept", type=Path, metavar="DIRECTORY", help="of web: keep its books there"
    )
    parser.add_argument(
        "--postgres", action="append", default=[], metavar="NAME=VALUE", help="a server setting"
    )
    return parser


def chosen_scale(given: argparse.Namespace) -> Scale:
    names = ("rounds", "rate", "seconds", "search_seconds", "reports", "kept")
    chosen = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    return replace(QUICK if given.quick else FULL, **chosen)


if __name__ == "__main__":
    main()
