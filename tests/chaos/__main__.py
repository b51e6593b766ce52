"""``python -m tests.chaos --faults 500 --seed 7``: the fault suite as a command.

Prints its seed first, each round as it goes, and the figures. Exit 1 when anything was wrong.
"""

import argparse
import random
import sys
from pathlib import Path

from tests.chaos.figures import Figures
from tests.chaos.plan import FAULT_KINDS
from tests.chaos.runner import run, to_stderr
from tests.support.servers import RedisServer


def main() -> int:
    both = ["valkey", "redis"] if RedisServer.is_installed() else ["valkey"]
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=100, help="how many (100)")
    parser.add_argument("--seed", type=int, default=None, help="replay a run; else a new one")
    parser.add_argument("--server", choices=["both", "valkey", "redis"], default="both")
    parser.add_argument("--capture", choices=["replication", "subscribe"], default="replication")
    parser.add_argument("--spare-redis", action="store_true", help="only faults that lose nothing")
    parser.add_argument("--no-front", action="store_true", help="a cell without a front")
    parser.add_argument("--rate", type=float, default=100.0, help="events a second (100)")
    parser.add_argument(
        "--only", choices=sorted(FAULT_KINDS), nargs="*", default=[], metavar="KIND"
    )
    parser.add_argument("--figures", type=Path, metavar="FILE", help="add the figures to a file")
    parser.add_argument("--sum", type=Path, metavar="FILE", help="only sum the figures of a file")
    given = parser.parse_args()
    if given.sum is not None:
        total = Figures()
        for line in given.sum.read_text().splitlines():
            total.add(Figures.from_json(line))
        sys.stdout.write("\n".join(total.lines()) + "\n")
        return 0
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    figures = Figures([seed])
    try:
        run(
            given.faults,
            seed,
            servers=both if given.server == "both" else [given.server],
            capture=given.capture,
            rate=given.rate,
            only=given.only,
            spare_redis=given.spare_redis,
            has_front=not given.no_front,
            say=to_stderr,
            figures=figures,
        )
    except AssertionError as error:
        to_stderr(f"seed {seed}: {error}")
        return 1
    finally:
        if given.figures is not None:
            with given.figures.open("a") as file:
                file.write(figures.to_json() + "\n")
    sys.stdout.write("\n".join(figures.lines()) + "\n")
    return 0


sys.exit(main())
