"""The whole service on this machine: publishers, Valkeys, collectors, jobs and one Postgres.

    with Line(bed, scale, sources=1) as line:
        line.fill()
        stretch = line.run(rate=25_000, seconds=300)
        line.check(line.end())

Each source has its own publisher, Valkey, collector process and realms; the realms show the lag of
each source. A thread samples the lag and the memory of the processes every second.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Final, Self

import psycopg

from accounting.domain.counters import COUNTERS
from benchmarks.figures import Figure
from benchmarks.fixture import BenchmarkDatabase, benchmark_database
from benchmarks.measure import cpu_seconds, log_progress, resident_bytes
from benchmarks.publisher import Publisher, Timeline
from benchmarks.scale import Scale
from benchmarks.workload import REALMS
from tests.support.servers import PostgresServer, ValkeyServer
from tests.support.service import SERVICE, Service

VALKEY: Final = {"repl-diskless-sync-delay": "0", "repl-backlog-size": "64mb"}
DRAIN_SECONDS: Final = 1800.0
MAX_LAG_SECONDS: Final = 60.0
PROGRESS: Final = (
    "SELECT realm, sum(sessions_started)::bigint FROM reporting.realm_usage_monthly GROUP BY realm"
)
SETTLED: Final = "SELECT extract(epoch FROM min(settled_until))::float8 FROM reporting.sources"


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample: started sessions in the usage by source, the settled time, memory by process."""

    at: float
    started: Mapping[int, int]
    settled_until: float
    resident: Mapping[str, int]


@dataclass(slots=True)
class MeasuredRun:
    """The measurements of one rate, until the usage had everything.

    ``seconds``: of publishing. ``catch_up_seconds``: from its end until the usage had everything.
    ``cpu``: seconds by kind of process, including the catch-up. ``cores``: in use while publishing.
    ``wal_bytes``: written by Postgres to its WAL.
    """

    target_rate: float
    seconds: float
    sent: int
    usage_lags: list[float]
    settle_lags: list[float]
    cpu: dict[str, float]
    cores: float
    catch_up_seconds: float
    wal_bytes: int
    resident: dict[str, list[int]] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.sent / self.seconds

    @property
    def max_lag(self) -> float:
        return max(self.usage_lags)

    @property
    def median_lag(self) -> float:
        return median(self.usage_lags)

    def cpu_micros(self, kind: str) -> float:
        """Microseconds of CPU time for each message."""
        return self.cpu[kind] * 1e6 / max(self.sent, 1)


class Pipeline:
    """Everything between coturn's messages and the usage views, for one or more sources."""

    def __init__(
        self,
        bed: BenchmarkDatabase,
        scale: Scale,
        *,
        sources: int = 1,
        first_source: int = 0,
        capture: str = "replication",
    ) -> None:
        """``first_source``: the number in the names of its first source and of its realms."""
        self._bed = bed
        self._scale = scale
        self._source_count = sources
        self._first_source = first_source
        self._open_count = scale.open_sessions // sources
        self._users = max(1, scale.users // sources)
        self._capture = capture
        self._stack = ExitStack()
        self._valkeys: list[ValkeyServer] = []
        self._collectors: list[Service] = []
        self._publishers: list[Publisher] = []
        self._schedule: Service | None = None
        self._samples: list[Sample] = []
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="sampler", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._sampler.is_alive():
            self._sampler.join()
        self._stack.close()

    def _start(self) -> None:
        common = {
            "ACCOUNTING_DATABASE_URL": self._bed.writer_url,
            "ACCOUNTING_SETTLE_INTERVAL_SECONDS": str(self._scale.job_seconds),
            "ACCOUNTING_ROLLUP_INTERVAL_SECONDS": str(self._scale.job_seconds),
        }
        for number in range(self._source_count):
            valkey = self._stack.enter_context(ValkeyServer(VALKEY))
            self._valkeys.append(valkey)
            settings = {
                **common,
                "ACCOUNTING_REDIS_URL": valkey.url,
                "ACCOUNTING_CAPTURE": self._capture,
                "ACCOUNTING_SOURCE": f"source-{self._first_source + number}",
            }
            home = self._bed.directory / f"source-{number}"
            collector = self._stack.enter_context(
                Service("collect", home, settings, module=SERVICE)
            )
            self._collectors.append(collector)
        self._schedule = self._stack.enter_context(
            Service("schedule", self._bed.directory / "jobs", common, module=SERVICE)
        )
        for number, (valkey, collector) in enumerate(
            zip(self._valkeys, self._collectors, strict=True)
        ):
            collector.wait_until_capturing()
            collector.wait_for_child("load")
            realms = ",".join(realm.decode() for realm in self._realms(number))
            self._publishers.append(
                self._stack.enter_context(
                    Publisher(
                        self._bed.directory,
                        str(number),
                        valkey.port,
                        open_sessions=self._open_count,
                        users=self._users,
                        realms=realms,
                    )
                )
            )
        self._sampler.start()

    def _realms(self, number: int) -> list[bytes]:
        return [b"%d.%b" % (self._first_source + number, realm) for realm in REALMS]

    # Control

    def open_sessions(self) -> None:
        """Start all sessions that are to be open, and wait until the books have them."""
        self._set_rate(self._scale.fill_rate)
        self._wait_for(
            lambda: all(
                line.started and line.started[-1] >= self._open_count for line in self._timelines()
            ),
            "filling",
        )
        self.drain()

    def run(self, rate: float, seconds: float) -> MeasuredRun:
        """Publish at a total rate for so long, or until the lag is too large; then catch up."""
        first, before, began = len(self._samples), self._cpu_seconds(), time.time()
        wal_before = self._bed.wal_bytes()
        self._set_rate(rate)
        deadline = time.monotonic() + seconds
        reported = 0
        while time.monotonic() < deadline:
            self._stop.wait(self._scale.sample_seconds / 4)
            reported = self._report_progress(began, seconds, reported)
            if self.lag() > MAX_LAG_SECONDS:
                log_progress("the lag is too large: stopped early")
                break
        ended, busy = time.time(), self._cpu_seconds()
        catch_up = self.drain()
        after = self._cpu_seconds()
        samples = self._samples[first:]
        lines = self._timelines()
        return MeasuredRun(
            target_rate=rate,
            seconds=ended - began,
            sent=sum(line.sent(began, ended) for line in lines),
            usage_lags=[_usage_lag(lines, sample) for sample in samples],
            settle_lags=[sample.at - sample.settled_until for sample in samples],
            cpu={kind: after[kind] - before[kind] for kind in after},
            cores=(sum(busy.values()) - sum(before.values())) / (ended - began),
            catch_up_seconds=catch_up,
            wal_bytes=self._bed.wal_bytes() - wal_before,
            resident={
                kind: [sample.resident[kind] for sample in samples] for kind in samples[0].resident
            },
        )

    def drain(self) -> float:
        """Pause until the usage has everything sent; returns the seconds that this took."""
        began = time.monotonic()
        self._set_rate(0)
        self._wait_for(lambda: self.lag() == 0.0, "draining")
        return time.monotonic() - began

    def lag(self) -> float:
        """The lag of the usage at the last sample, in seconds."""
        return _usage_lag(self._timelines(), self._samples[-1]) if self._samples else 0.0

    def stop_publishing(self) -> dict[str, int]:
        """Stop publishing, wait until the books have everything, and return the expected sums."""
        self.drain()
        wanted: dict[str, int] = defaultdict(int)
        for publisher in self._publishers:
            for name, value in publisher.stop().items():
                wanted[name] += value
        self._wait_for(
            lambda: self._bed.sums("realm_usage_monthly", wanted) == list(wanted.values()),
            f"conservation: the books must have {dict(wanted)}",
        )
        return dict(wanted)

    def check(self, wanted: Mapping[str, int]) -> None:
        """Check that each message has one report, sessions equal usage, and there is no gap."""
        messages = sum(line.messages[-1] for line in self._timelines())
        assert self._bed.query("SELECT count(*) FROM accounting.reports") == [(messages,)]
        assert self._bed.query("SELECT count(*) FROM reporting.capture_gaps") == [(0,)]
        assert self._bed.sums("sessions", COUNTERS) == [wanted[name] for name in COUNTERS]

    def memory(self) -> dict[str, int]:
        """The memory of the largest process of each kind now, in bytes."""
        return {
            kind: max(resident_bytes(pid) for pid in pids)
            for kind, pids in self._processes().items()
        }

    # Samples

    def _processes(self) -> dict[str, list[int]]:
        assert self._schedule is not None
        return {
            "publisher": [publisher.pid for publisher in self._publishers],
            "Redis": [valkey.pid for valkey in self._valkeys],
            "collector": [collector.pid for collector in self._collectors],
            "loader": [collector.child_pid("load") for collector in self._collectors],
            "jobs": [self._schedule.pid],
        }

    def _cpu_seconds(self) -> dict[str, float]:
        taken = {
            kind: sum(cpu_seconds(pid) for pid in pids) for kind, pids in self._processes().items()
        }
        return {**taken, "Postgres": cpu_seconds(self._bed.server.pid, tree=True)}

    def _sample(self) -> None:
        places = {
            realm.decode(): number
            for number in range(self._source_count)
            for realm in self._realms(number)
        }
        with psycopg.connect(self._bed.url(), autocommit=True) as connection:
            while not self._stop.wait(self._scale.sample_seconds):
                started = dict.fromkeys(range(self._source_count), 0)
                at = time.time()
                for realm, count in connection.execute(PROGRESS):
                    started[places[realm]] += count
                row = connection.execute(SETTLED).fetchone()
                settled = row[0] if row and row[0] else at
                self._samples.append(Sample(at, started, settled, self.memory()))

    def _timelines(self) -> list[Timeline]:
        return [publisher.timeline() for publisher in self._publishers]

    def _set_rate(self, rate: float) -> None:
        for publisher in self._publishers:
            publisher.set_rate(rate / self._source_count)

    def _wait_for(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        looked = len(self._samples)
        while True:
            if len(self._samples) > looked and condition():
                return
            assert time.monotonic() < deadline, f"not within {DRAIN_SECONDS} s: {what}"
            assert self._sampler.is_alive(), "the sampler ended"
            self._stop.wait(self._scale.sample_seconds / 4)

    def _report_progress(self, began: float, seconds: float, reported: int) -> int:
        minutes = int((time.time() - began) // 20)
        if minutes > reported:
            log_progress(f"{time.time() - began:.0f} of {seconds:.0f} s, {self.lag():.1f} s behind")
        return max(minutes, reported)


def _usage_lag(lines: list[Timeline], sample: Sample) -> float:
    return max(line.lag(sample.at, sample.started[number]) for number, line in enumerate(lines))


def measure_pipeline(
    server: PostgresServer,
    scale: Scale,
    measure: Callable[[Pipeline], list[Figure]],
    *,
    sources: int = 1,
) -> list[Figure]:
    """Measure a pipeline whose sessions are open, and check its books at the end."""
    with benchmark_database(server) as bed, Pipeline(bed, scale, sources=sources) as line:
        log_progress(f"{sources} source(s), opening {scale.open_sessions:,} sessions")
        line.open_sessions()
        figures = measure(line)
        line.check(line.stop_publishing())
    return figures
