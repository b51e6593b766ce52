"""The sizes of each part: of a full run, and of a quick one that only shows that it works."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes of the parts. All rates are messages a second.

    job_seconds: between two runs of settle, and of the roll-up. sample_seconds: between two samples
    of the lag. captures, messages: the modes and the size of the captured burst. events: of the
    workload for load and settle, in steps of step_events. rows: of an export.
    listed_users: in a list that a command prints. rate, seconds: of the
    whole path; search_seconds: of a step in the search for its limit, 0 for none. many_sessions:
    open ones for the memory. idle_seconds: measured of a service at rest, which rests for
    settle_down_seconds before, and before each of the lag_messages. day_reports: of a day of
    history; reports: of the largest history. web_sessions, web_users: of the books that pages and
    the API are read from; web_live: of these sessions the open ones; web_requests: to each route in
    a round. kept: a directory for these books, which later runs use again.
    """

    rounds: int = 3
    job_seconds: float = 2.0
    sample_seconds: float = 1.0
    open_sessions: int = 100_000
    users: int = 50_000
    captures: tuple[Literal["subscribe", "replication"], ...] = ("subscribe", "replication")
    messages: int = 1_000_000
    events: int = 500_000
    step_events: int = 50_000
    rows: int = 500_000
    listed_users: int = 8_000
    rate: float = 25_000
    fill_rate: float = 20_000
    seconds: float = 300.0
    search_seconds: float = 60.0
    most_behind_seconds: float = 10.0
    many_sessions: int = 1_000_000
    memory_seconds: float = 60.0
    idle_seconds: float = 60.0
    settle_down_seconds: float = 20.0
    lag_messages: int = 5
    sources: tuple[int, ...] = (1, 2, 4)
    cells: tuple[int, ...] = (1, 2, 3)
    sources_rate: float = 8_000
    sources_seconds: float = 40.0
    day_reports: int = 1_000_000
    day_users: int = 30_000
    reports: int = 10_000_000
    growth_events: int = 200_000
    growth_open_sessions: int = 50_000
    web_sessions: int = 10_000_000
    web_users: int = 100_000
    web_live: int = 10_000
    web_requests: int = 20
    kept: Path | None = None


FULL: Final = Scale()
QUICK: Final = Scale(
    rounds=1,
    job_seconds=0.2,
    sample_seconds=0.2,
    open_sessions=1_000,
    users=500,
    messages=20_000,
    events=6_400,
    step_events=3_200,
    rows=5_000,
    listed_users=500,
    rate=1_000,
    fill_rate=2_000,
    seconds=3.0,
    search_seconds=0.0,
    many_sessions=2_000,
    memory_seconds=2.0,
    idle_seconds=2.0,
    settle_down_seconds=1.0,
    lag_messages=1,
    sources=(1, 2),
    cells=(1, 2),
    sources_rate=500,
    sources_seconds=2.0,
    day_reports=6_400,
    day_users=200,
    reports=19_200,
    growth_events=3_200,
    growth_open_sessions=500,
    web_sessions=20_000,
    web_users=1_000,
    web_live=100,
    web_requests=2,
)
