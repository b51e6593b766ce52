"""A run: rounds of faults on a deployment, a check after each round, and the figures.

One loop in the main thread steps everything.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.chaos.checker import Checker, TimeSpan
from tests.chaos.deployment import Capture, Deployment, running_deployment
from tests.chaos.fault_kinds import FaultKind, Step
from tests.chaos.figures import Figures
from tests.chaos.plan import PlannedFault, Round, may_cost, plan_rounds

PACE: Final = threading.Event()
"""Never set; its wait is the pause between two checks of a condition."""
STEP_SECONDS: Final = 0.04
TIMEOUT_SECONDS: Final = 90.0
FAULTS_PER_DEPLOYMENT: Final = 200
# A gap begins at the last checkpoint before the fault and ends with the next attachment.
SPAN_BEFORE_SECONDS: Final = 3.0

LONGEST_SHOWN: Final = 5

Say = Callable[[str], object]


class TimedOut(AssertionError):
    """A condition was not met in time."""


@dataclass(slots=True)
class ActiveFault:
    """A fault that has started."""

    planned: PlannedFault
    steps: Iterator[Step]
    began: float
    is_due: Callable[[], object] = lambda: True
    since: float = 0.0

    def advance(self) -> bool:
        """Take the next step if its condition is met; returns whether the fault is over."""
        if not self.is_due():
            if time.monotonic() - self.since > TIMEOUT_SECONDS:
                raise TimedOut(
                    f"{self.planned.kind.name}: condition not met in {TIMEOUT_SECONDS} s"
                )
            return False
        try:
            step = next(self.steps)
        except StopIteration:
            return True
        self.since = time.monotonic()
        self.is_due = after(step) if isinstance(step, float | int) else step
        return False


def after(seconds: float) -> Callable[[], bool]:
    due = time.monotonic() + seconds
    return lambda: time.monotonic() >= due


def run(
    faults: int,
    seed: int,
    *,
    servers: Collection[str] = ("valkey",),
    capture: Capture = "replication",
    rate: float = 100.0,
    only: Collection[str] = (),
    spare_redis: bool = False,
    has_front: bool = True,
    say: Say = lambda _: None,
    directory: Path | None = None,
    figures: Figures | None = None,
) -> Figures:
    """Inject so many faults, each two hundred into a new deployment with the next of ``servers``.

    Adds to ``figures`` while it runs. Raises AssertionError with all errors of the first round that
    has some.
    """
    figures = figures or Figures([seed])
    began = time.monotonic()
    home = directory or Path(tempfile.mkdtemp(prefix="ta-chaos-"))
    say(f"seed {seed}, logs below {home}")
    kinds, number = list(servers), 0
    while faults:
        count = min(faults, FAULTS_PER_DEPLOYMENT)
        server = kinds[number % len(kinds)]
        say(f"a deployment with {server}, {capture}, {count} faults, seed {seed + number}")
        directory_name = home / f"{number}-{server}"
        with running_deployment(
            directory_name,
            server=server,
            capture=capture,
            rate=rate,
            seed=seed + number,
            has_front=has_front,
        ) as deployment:
            checker = Checker(deployment)
            try:
                for fault_round in plan_rounds(
                    count,
                    seed + number,
                    capture,
                    only,
                    spare_redis=spare_redis,
                    abilities=deployment.abilities,
                ):
                    play_round(deployment, checker, fault_round, figures, say)
            finally:
                figures.tally.add(checker.tally)
                for name, seconds in deployment.watcher.recoveries:
                    figures.recoveries[name].append(seconds)
                figures.seconds = time.monotonic() - began
        faults, number = faults - count, number + 1
    return figures


def play_round(
    deployment: Deployment, checker: Checker, fault_round: Round, figures: Figures, say: Say
) -> None:
    """Run one round: its faults, the drain and the check."""
    names = ", ".join(planned.kind.name for planned in fault_round.faults)
    say(f"round {fault_round.number}{' (may lose)' if fault_round.may_lose else ''}: {names}")
    deployment.publisher.begin_round(fault_round.number)
    deployment.publisher.resume()
    spans: list[TimeSpan] = []
    before = checker.tally.published, checker.tally.lost_within_gaps
    began = time.monotonic()
    try:
        durations = inject_faults(deployment, fault_round, figures, spans)
        injected = time.monotonic() - began
        deployment.publisher.pause()
        drained = drain(deployment)
    except TimedOut as stuck:
        raise AssertionError(
            f"round {fault_round.number} ({names}): {stuck}\n{log_tails(deployment)}"
        ) from stuck
    spans = [(since - SPAN_BEFORE_SECONDS, time.time()) for since, _ in spans]
    began = time.monotonic()
    checker.check(deployment.publisher.take_messages(), spans, may_lose=fault_round.may_lose)
    checked = time.monotonic() - began
    figures.rounds += 1
    figures.lossless_faults += 0 if fault_round.may_lose else len(fault_round.faults)
    if checker.tally.errors:
        wrong = "\n".join(checker.tally.errors)
        raise AssertionError(
            f"round {fault_round.number} ({names}):\n{wrong}\n{log_tails(deployment)}"
        )
    published, lost = (
        checker.tally.published - before[0],
        checker.tally.lost_within_gaps - before[1],
    )
    say(
        f"  {published} published, {lost} lost within gaps; faults {injected:.1f} s,"
        f" drained in {drained:.1f} s, checked in {checked:.1f} s"
    )
    longest = sorted(durations.items(), key=lambda entry: -entry[1])[:LONGEST_SHOWN]
    say(f"  longest: {', '.join(f'{name} {seconds:.1f} s' for name, seconds in longest)}")


def inject_faults(
    deployment: Deployment, fault_round: Round, figures: Figures, spans: list[TimeSpan]
) -> dict[str, float]:
    """Inject the faults of a round, each when it is due and no active fault uses the same parts.

    One that has to wait lets later ones pass. Returns the seconds that each kind has taken.
    """
    durations: dict[str, float] = {}
    waiting = list(fault_round.faults)
    due = time.monotonic() + 0.3
    active: list[ActiveFault] = []
    while waiting or active:
        deployment.restart_exited()
        taken = {thing for fault in active for thing in fault.planned.kind.uses}
        planned = next((each for each in waiting if not taken & each.kind.uses), None)
        if planned is not None and time.monotonic() >= due:
            waiting.remove(planned)
            figures.faults[planned.kind.name] += 1
            active.append(
                ActiveFault(planned, planned.kind.fault(deployment, planned.seconds), time.time())
            )
            due = time.monotonic() + (waiting[0].after_seconds if waiting else 0.0)
        for fault in list(active):
            if fault.advance():
                active.remove(fault)
                name = fault.planned.kind.name
                durations[name] = durations.get(name, 0.0) + time.time() - fault.began
                deployment.watcher.await_recovery(name)
                if may_leave_gap(fault.planned.kind, fault_round, deployment):
                    spans.append((fault.began, time.time()))
        PACE.wait(STEP_SECONDS)
    return durations


def may_leave_gap(kind: FaultKind, fault_round: Round, deployment: Deployment) -> bool:
    """Whether events may be missing that were published since the fault began, within a gap."""
    return (
        kind.leaves_gap
        or may_cost(kind, deployment.capture)
        or (kind.sets_back and fault_round.may_lose)
    )


def drain(deployment: Deployment) -> float:
    """Wait until everything published is settled and rolled up; returns the seconds."""
    deployment.end_faults()
    began, paused_at = time.monotonic(), time.time()
    while deployment.watcher.settled_until <= paused_at or deployment.watcher.delta_count:
        deployment.restart_exited()
        if time.monotonic() - began > TIMEOUT_SECONDS:
            behind = paused_at - deployment.watcher.settled_until
            raise TimedOut(
                f"not drained in {TIMEOUT_SECONDS} s: settling {behind:.1f} s behind,"
                f" loading {paused_at - deployment.watcher.loaded_until:.1f} s,"
                f" {deployment.watcher.delta_count} usage deltas"
            )
        PACE.wait(STEP_SECONDS)
    return time.monotonic() - began


def log_tails(deployment: Deployment) -> str:
    """The ends of the logs."""
    parts = []
    for machine in deployment.machines:
        logs = sorted(machine.directory.glob("*.log"), key=lambda path: path.stat().st_mtime)
        if logs:
            text = logs[-1].read_text(errors="replace")[-2500:]
            parts.append(f"--- {machine.name} {logs[-1].name}\n{text}")
    return "\n".join(parts)


def to_stderr(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
