"""``python -m tests.histories --seeds 1-50``: plays random histories, and compares every figure.

Prints the plan of each history and what was found. Exit 1 when a history failed; the data directory
of the first failed one is kept.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.histories.cells import CellsPlayer, make_cells_plan
from tests.histories.plan import make_plan
from tests.histories.player import Player
from tests.support.books import cloned_database, make_template
from tests.support.servers import PostgresServer, RedisServer, ValkeyServer

BACKLOG: Final = {"repl-backlog-size": "64mb"}


def parse_seeds(text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.histories", description=__doc__)
    parser.add_argument("--seeds", type=parse_seeds, default=[1], help="such as 1-50 or 3,7")
    parser.add_argument("--short", action="store_true", help="as in `make test`")
    parser.add_argument("--cells", type=int, choices=(2, 3), help="over the cells of a front")
    given = parser.parse_args()
    if given.cells:
        return play_over_cells(given.seeds, given.cells, short=given.short)
    failed = []
    second = RedisServer if RedisServer.is_installed() else ValkeyServer
    with PostgresServer() as server, ValkeyServer(BACKLOG) as valkey, second(BACKLOG) as other:
        make_template(server)
        for seed in given.seeds:
            plan = make_plan(seed, short=given.short)
            say(f"seed {seed}")
            for line in plan.lines():
                say(f"  {line}")
            directory = Path(tempfile.mkdtemp(prefix=f"ta-history-{seed}-"))
            started = time.monotonic()
            with cloned_database(server) as database:
                player = Player(
                    plan, server, database, directory, () if given.short else (valkey, other)
                )
                try:
                    player.play()
                except AssertionError as error:
                    say(str(error))
                    say(f"seed {seed} FAILED; its data is in {directory}")
                    failed.append(seed)
                else:
                    shutil.rmtree(directory)
                    messages = sum(len(s.stream.messages) for s in player.sources)
                    say(
                        f"seed {seed} ok: {messages} messages, {player.runs} processes,"
                        f" {player.killed} killed, {time.monotonic() - started:.1f} s"
                    )
    say(f"{len(given.seeds)} histories, {len(failed)} failed: {failed}")
    return bool(failed)


def play_over_cells(seeds: Sequence[int], cells: int, *, short: bool) -> int:
    """Play histories over cells; returns the exit code."""
    failed = []
    interruptions = events = restored = 0
    with PostgresServer() as server:
        make_template(server)
        for seed in seeds:
            directory = Path(tempfile.mkdtemp(prefix=f"ta-cells-{seed}-"))
            started = time.monotonic()
            player = CellsPlayer(
                make_cells_plan(seed, cells=cells, short=short), server, directory, cells
            )
            try:
                player.play()
            except AssertionError as error:
                say(str(error))
                say(f"seed {seed} FAILED; its spools are in {directory}")
                failed.append(seed)
                continue
            shutil.rmtree(directory)
            interruptions += player.interruptions
            events += player.events
            restored += len(player.restored)
            say(
                f"seed {seed} ok: {player.runs} runs, {player.interruptions} interruptions,"
                f" {player.events} events, {player.closed} periods closed,"
                f" {len(player.restored)} restored, {time.monotonic() - started:.1f} s"
            )
    say(
        f"{len(seeds)} histories over {cells} cells, {interruptions} interruptions,"
        f" {restored} cells restored, {events} events in the feeds; {len(failed)} failed: {failed}"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
