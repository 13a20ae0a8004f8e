"""Celery, Dramatiq and Taskiq on Redis, each with two worker processes, in an environment of
their own.

Drain: the warm worker's processes are frozen (SIGSTOP) while jobs are enqueued; the clock runs
from SIGCONT to the last job's end. None of the three records an end when results are off, so the
job itself counts into a shared file (`sources/python/meter.py`): in their favour, since their
acknowledgement comes after.
"""

from __future__ import annotations

import sys
import tempfile
import time
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.peers.sources.python.meter import HEADER, SAMPLE
from benchmarks.processes import (
    READY_SECONDS,
    Child,
    cache_folder,
    copy_sources,
    discard,
    mark_installed,
    run_step,
    wait_until,
)
from benchmarks.program import (
    LATENCY_WARMUP_SECONDS,
    MEASURE_DEADLINE_SECONDS,
    PYTHON_WARMUP_JOBS,
    Latency,
    NotMeasuredError,
    check_rate_held,
)
from benchmarks.servers import REDIS_SETTINGS, Redis, redis_server

SOURCES = Path(__file__).resolve().parent / "sources" / "python"

# How often the counters are read; the time of the last end is in the file, so this costs no
# accuracy.
POLL_SECONDS = 0.01
# How long a worker may end no job before it counts as hung, or its jobs as lost.
STALL_SECONDS = 60.0
# How long a worker may lag behind after a latency run before it has plainly not held the rate.
LAG_SECONDS = 60.0


class MeterReader:
    """Reads the counters that a peer's worker processes keep in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ended(self) -> int:
        return sum(header[0] for header in self._headers().values())

    def last_end_ns(self) -> int:
        return max((header[1] for header in self._headers().values()), default=0)

    def sample_counts(self) -> dict[Path, int]:
        return {path: header[2] for path, header in self._headers().items()}

    def samples_since(self, before: Mapping[Path, int]) -> list[float]:
        """The latencies in milliseconds that came after `before` was read."""
        values: list[float] = []
        for path, count in self.sample_counts().items():
            first = before.get(path, 0)
            with path.open("rb") as file:
                file.seek(HEADER.size + first * SAMPLE.size)
                found = array("d")
                found.frombytes(file.read((count - first) * SAMPLE.size))
                values.extend(found)
        return values

    def _headers(self) -> dict[Path, tuple[int, int, int]]:
        headers = {}
        for path in self._folder.glob("meter-*"):
            with path.open("rb") as file:
                data = file.read(HEADER.size)
            if len(data) == HEADER.size:
                headers[path] = HEADER.unpack(data)
        return headers


class PythonPeer:
    """See `Program`."""

    def __init__(
        self,
        *,
        name: str,
        title: str,
        worker: Sequence[str],
        settings: Mapping[str, str],
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`worker` is its command; `variables` are environment variables that it understands."""
        self.name = name
        self.title = title
        self.settings = {"server": REDIS_SETTINGS, **settings}
        self._module = f"peer_{name}"
        self._worker_command = worker
        self._variables = dict(variables or {})
        self._redis = Redis()
        self._environment = Path()
        self._folder: Path | None = None
        self._worker: Child | None = None
        self._producer: Child | None = None

    def install(self) -> None:
        redis_server()
        folder = cache_folder("python")
        self._environment = folder / "venv" / "bin"
        if not copy_sources(SOURCES, folder):
            run_step([sys.executable, "-m", "venv", "--clear", "venv"], cwd=folder)
            install = ["venv/bin/python", "-m", "pip", "install", "-q", "-r", "requirements.txt"]
            run_step(install, cwd=folder)
            mark_installed(folder)

    def start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix=f"bench-{self.name}-"))
        self._redis.start()
        self._start_worker()
        self._producer = self._child("python", ["producer.py", self._module], talks=True)
        self._producer.answer(READY_SECONDS)
        self._warm_up()

    def drain(self, jobs: int) -> float:
        worker, producer, meter = self._parts()
        worker.freeze()
        producer.ask(MEASURE_DEADLINE_SECONDS, do="add", jobs=jobs)
        before = meter.ended()
        begin = time.monotonic_ns()
        worker.thaw()
        self._wait_for(before + jobs, MEASURE_DEADLINE_SECONDS)
        return jobs * 1e9 / (meter.last_end_ns() - begin)

    def enqueue(self, jobs: int) -> float:
        worker, producer, _ = self._parts()
        # What the worker had prefetched would run later: it goes, and a warm one comes back.
        worker.stop()
        seconds = producer.ask(MEASURE_DEADLINE_SECONDS, do="add", jobs=jobs)["seconds"]
        self._redis.flush()
        self._start_worker()
        self._warm_up()
        return jobs / float(seconds)

    def latency(self, rate: int, seconds: float) -> Latency:
        _, producer, meter = self._parts()
        jobs = round(rate * LATENCY_WARMUP_SECONDS) + round(rate * seconds)
        ended, samples = meter.ended(), meter.sample_counts()
        paced = producer.ask(
            MEASURE_DEADLINE_SECONDS,
            do="pace",
            rate=rate,
            seconds=seconds,
            warmup_seconds=LATENCY_WARMUP_SECONDS,
        )
        check_rate_held(rate=rate, jobs=jobs, seconds=paced["seconds"])
        self._wait_for(ended + jobs, LAG_SECONDS)
        return Latency.of(meter.samples_since(samples))

    def stop(self) -> None:
        for child in (self._worker, self._producer):
            if child is not None:
                child.stop()
        self._worker = self._producer = None
        self._redis.stop()
        if self._folder is not None:
            discard(self._folder)
            self._folder = None

    def _parts(self) -> tuple[Child, Child, MeterReader]:
        assert self._worker is not None
        assert self._producer is not None
        assert self._folder is not None
        return self._worker, self._producer, MeterReader(self._folder)

    def _start_worker(self) -> None:
        program, *arguments = self._worker_command
        self._worker = self._child(program, arguments, talks=False)

    def _child(self, program: str, arguments: Sequence[str], *, talks: bool) -> Child:
        assert self._folder is not None
        sources = self._environment.parent.parent
        environment = {
            **self._variables,
            "PEER_REDIS_URL": self._redis.url,
            "PEER_METER_FOLDER": str(self._folder),
            "PYTHONPATH": str(sources),
        }
        return Child(
            [str(self._environment / program), *arguments],
            cwd=sources,
            env=environment,
            log=self._folder / f"{program}.log",
            talks=talks,
        )

    def _warm_up(self) -> None:
        _, producer, meter = self._parts()
        before = meter.ended()
        producer.ask(MEASURE_DEADLINE_SECONDS, do="add", jobs=PYTHON_WARMUP_JOBS)
        self._wait_for(before + PYTHON_WARMUP_JOBS, MEASURE_DEADLINE_SECONDS)

    def _wait_for(self, ended: int, deadline_seconds: float) -> None:
        worker, _, meter = self._parts()
        seen, seen_at = meter.ended(), time.monotonic()

        def is_done() -> bool:
            nonlocal seen, seen_at
            if not worker.is_alive():
                raise NotMeasuredError(f"{self.name}'s worker has ended: {worker.log_tail()}")
            now = meter.ended()
            if now != seen:
                seen, seen_at = now, time.monotonic()
            if time.monotonic() - seen_at > STALL_SECONDS:
                raise NotMeasuredError(
                    f"{self.name} ended {ended - now:,} jobs too few: {worker.log_tail()}"
                )
            return now >= ended

        wait_until(is_done, deadline_seconds, f"{self.name}'s worker", POLL_SECONDS)


def celery() -> PythonPeer:
    """Celery's prefork pool; gossip, mingle and heartbeat are off since each costs throughput."""
    worker = [
        "celery",
        "--app",
        "peer_celery",
        "worker",
        "--pool",
        "prefork",
        "--concurrency",
        "2",
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
        "--loglevel",
        "ERROR",
    ]
    return PythonPeer(
        name="celery",
        title="Celery 5.7 (Redis)",
        worker=worker,
        settings={
            "worker": "2 processes (prefork), prefetch 64, results and events off",
            "enqueue": "apply_async in a loop",
            "latency": "until the job's function ran",
        },
    )


def dramatiq() -> PythonPeer:
    """Dramatiq with its default of eight threads, and the prefetch that drains it fastest."""
    worker = ["dramatiq", "--processes", "2", "--threads", "8", "peer_dramatiq"]
    return PythonPeer(
        name="dramatiq",
        title="Dramatiq 2.2 (Redis)",
        worker=worker,
        variables={"dramatiq_queue_prefetch": "1000"},
        settings={
            "worker": "2 processes of 8 threads, prefetch 1,000",
            "enqueue": "send in a loop",
            "latency": "until the job's function ran",
        },
    )


def taskiq() -> PythonPeer:
    """Taskiq's list broker; more jobs at once than ten only cost it processor time."""
    worker = [
        "taskiq",
        "worker",
        "peer_taskiq:broker",
        "--workers",
        "2",
        "--max-async-tasks",
        "10",
        "--log-level",
        "ERROR",
    ]
    return PythonPeer(
        name="taskiq",
        title="Taskiq 0.13 (Redis)",
        worker=worker,
        settings={
            "worker": "2 processes, 10 jobs at once in each, list broker, results off",
            "enqueue": "kiq, 200 in flight",
            "latency": "until the job's function ran",
        },
    )
