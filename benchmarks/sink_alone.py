"""The sink alone: how many events per second, at what cost, and how soon they can be seen.

Owns three measurements over a real broker and a real engine, with nothing else at work:
a log of many events is caught up with (events/s, CPU per event), then jobs come at a steady rate
(time from the produced event to its row, CPU), then nothing comes (CPU). Refuses to know how the
sink does it: it is started as `tidemill dev` starts it, with page and port in the same process.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
from confluent_kafka import Producer

from benchmarks.event_log import make_events
from benchmarks.processes import LOG_TAIL_CHARACTERS
from benchmarks.program import NotMeasuredError
from tidemill.agents import topics as topics_
from tidemill.agents.embedded.broker import Broker
from tidemill.agents.embedded.ports import free_port
from tidemill.schemas.topics import Topics

JOBS: Final = 100_000  # about 400,000 events
QUICK_JOBS: Final = 10_000
RATE: Final = 2_000  # jobs per second of the steady part
STEADY_SECONDS: Final = 20.0
IDLE_SECONDS: Final = 5.0
GROUP_SECONDS: Final = 0.02  # one transaction of the imitated ledger in the steady part
GROUP_EVENTS: Final = 2_000  # events of a transaction of the log that is made before
POLL_SECONDS: Final = 0.05
PARTITIONS: Final = 4
DEADLINE_SECONDS: Final = 300.0


class Log:
    """The imitated ledger's events and its transactional producer."""

    def __init__(self, kafka: str, prefix: str) -> None:
        self._topic = Topics(prefix).events
        self._producer = Producer(
            {
                "bootstrap.servers": kafka, "transactional.id": f"{prefix}ledger",
                "linger.ms": 5, "compression.type": "gzip",
            }
        )
        self._producer.init_transactions()
        self._events = make_events(10_000_000, partitions=PARTITIONS)
        self.total = 0

    def produce(self, events: int) -> list[int]:
        """One transaction; how many events went to each partition."""
        counts = [0] * PARTITIONS
        self._producer.begin_transaction()
        for partition, event, value in itertools.islice(self._events, events):
            self._producer.produce(self._topic, value, event.user_id.encode(), partition)
            counts[partition] += 1
        self._producer.commit_transaction()
        self.total += events
        return counts


class Sink:
    """The sink in a process of its own, as `tidemill dev` starts it."""

    def __init__(self, kafka: str, prefix: str, folder: Path) -> None:
        self._port = free_port()
        self._log = folder.with_suffix(".log")
        self._popen = subprocess.Popen(
            [
                sys.executable, "-m", "tidemill", "stack", "--kafka", kafka,
                "--topic-prefix", prefix, "--partitions", str(PARTITIONS),
                "--clickhouse", f"chdb://{folder}", "--clickhouse-port", str(self._port),
                "--http-port", "0", "--instance-id", "bench-sink-0",
            ],
            stdout=subprocess.PIPE, stderr=self._log.open("w"), text=True,
        )
        self._process = psutil.Process(self._popen.pid)

    def wait_ready(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            if "role_ready" in line:
                return
        raise NotMeasuredError(
            f"the sink ended before it was ready: {self._log.read_text()[-LOG_TAIL_CHARACTERS:]}"
        )

    def cpu_seconds(self) -> float:
        used = self._process.cpu_times()
        return float(used.user + used.system)

    def memory_mib(self) -> float:
        return float(self._process.memory_info().rss) / 2**20

    def rows(self) -> list[int]:
        """Rows of each partition."""
        sql = "SELECT kafka_partition AS p, count() AS n FROM job_events GROUP BY p"
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/", f"{sql} FORMAT JSONEachRow".encode()
        )
        found = [0] * PARTITIONS
        with urllib.request.urlopen(asked, timeout=60.0) as answer:
            for line in answer.read().splitlines():
                row = json.loads(line)
                found[int(row["p"])] = int(row["n"])
        return found

    def stop(self) -> None:
        self._popen.terminate()
        self._popen.wait(30.0)


def catch_up(log: Log, sink: Sink) -> dict[str, Any]:
    """From the sink's readiness until every event of the log is a row."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    # The sink was not idle between its start and this call.
    before = sum(sink.rows())
    begun, cpu = time.monotonic(), sink.cpu_seconds()
    while sum(sink.rows()) < log.total:
        if time.monotonic() > deadline:
            raise NotMeasuredError(f"{sum(sink.rows())} of {log.total} rows after the deadline")
        time.sleep(POLL_SECONDS)
    seconds, used = time.monotonic() - begun, sink.cpu_seconds() - cpu
    events = log.total - before
    if not events:
        raise NotMeasuredError(f"all {log.total} events were rows at once: too few for a measure")
    return {
        "events": events,
        "seconds": round(seconds, 2),
        "events_per_second": round(events / seconds),
        "cpu_us_per_event": round(used / events * 1e6, 2),
        "events_per_cpu_second": round(events / used),
    }


def steady(log: Log, sink: Sink, jobs_per_second: int, events_per_job: float) -> dict[str, Any]:
    """Events at a steady rate: how long until each can be seen."""
    done = sink.rows()
    produced = list(done)
    waiting: list[deque[tuple[int, float, int]]] = [deque() for _ in range(PARTITIONS)]
    seen: list[float] = []
    begun, cpu, total = time.monotonic(), sink.cpu_seconds(), 0
    next_poll = begun
    while time.monotonic() - begun < STEADY_SECONDS or any(waiting):
        now = time.monotonic()
        wanted = int(min(now - begun, STEADY_SECONDS) * jobs_per_second * events_per_job)
        if wanted > total:
            counts = log.produce(wanted - total)
            total, at = wanted, time.monotonic()
            for partition, count in enumerate(counts):
                if count:
                    produced[partition] += count
                    waiting[partition].append((produced[partition], at, count))
        if now >= next_poll:
            next_poll = now + POLL_SECONDS
            rows, at = sink.rows(), time.monotonic()
            for partition, queue in enumerate(waiting):
                while queue and queue[0][0] <= rows[partition]:
                    _, since, count = queue.popleft()
                    seen += [at - since] * count
        time.sleep(GROUP_SECONDS)
    used = sink.cpu_seconds() - cpu
    cuts = statistics.quantiles(seen, n=100)
    return {
        "jobs_per_second": jobs_per_second,
        "events": total,
        "seen_after_p50_ms": round(cuts[49] * 1000),
        "seen_after_p99_ms": round(cuts[98] * 1000),
        "cpu_share_of_a_core": round(used / (time.monotonic() - begun), 3),
    }


def idle(sink: Sink) -> dict[str, Any]:
    """What it costs when nothing comes."""
    cpu = sink.cpu_seconds()
    time.sleep(IDLE_SECONDS)
    return {
        "cpu_share_of_a_core": round((sink.cpu_seconds() - cpu) / IDLE_SECONDS, 3),
        "memory_mib": round(sink.memory_mib()),
    }


def measure(*, is_quick: bool) -> dict[str, Any]:
    """All three, over a broker of its own."""
    jobs = QUICK_JOBS if is_quick else JOBS
    with tempfile.TemporaryDirectory(prefix="tidemill-sink-") as name:
        folder = Path(name)
        with broker_of(folder / "kafka") as kafka:
            return _measure(kafka, folder / "clickhouse", jobs, RATE)


def _measure(kafka: str, folder: Path, jobs: int, rate: int) -> dict[str, Any]:
    prefix = f"bench{uuid.uuid4().hex[:8]}."
    topics_.apply(kafka, Topics(prefix), PARTITIONS)
    log = Log(kafka, prefix)
    events_per_job = sum(1 for _ in make_events(10_000)) / 10_000
    for _ in range(0, int(jobs * events_per_job), GROUP_EVENTS):
        log.produce(GROUP_EVENTS)
    sink = Sink(kafka, prefix, folder)
    try:
        sink.wait_ready()
        return {
            "catch_up": catch_up(log, sink),
            "steady": steady(log, sink, rate, events_per_job),
            "idle": idle(sink),
        }
    finally:
        sink.stop()


@contextlib.contextmanager
def broker_of(folder: Path) -> Iterator[str]:
    """A broker of our own; its address."""
    broker = Broker(folder, free_port())
    broker.start()
    try:
        yield broker.bootstrap
    finally:
        broker.stop()
