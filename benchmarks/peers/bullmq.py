"""BullMQ on Redis: one worker process at concurrency 200, its best on two cores.

Drain: the worker is paused while jobs are added in bulk; the clock runs from its resume to the
event that it fires after Redis has recorded the last completion. Completed jobs are removed, as
keeping them costs it throughput.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from benchmarks.peers.node import install_node_peer, start_node
from benchmarks.processes import Child
from benchmarks.program import (
    LATENCY_WARMUP_SECONDS,
    MEASURE_DEADLINE_SECONDS,
    WARMUP_JOBS,
    Latency,
    check_rate_held,
)
from benchmarks.servers import REDIS_SETTINGS, Redis, redis_server


class BullMQ:
    """See `Program`."""

    name = "bullmq"
    title = "BullMQ 6.7 (Redis)"
    settings: ClassVar[Mapping[str, str]] = {
        "server": REDIS_SETTINGS,
        "worker": "one process, concurrency 200, removeOnComplete",
        "enqueue": "addBulk of 1,000",
        "latency": "until its worker's `completed` event",
    }

    def __init__(self) -> None:
        self._redis = Redis()
        self._folder = Path()
        self._children: list[Child] = []

    def install(self) -> None:
        redis_server()
        self._folder = install_node_peer(self.name)

    def start(self) -> None:
        self._redis.start()
        for role in ("worker", "producer"):
            self._children.append(start_node(self._folder, role, str(self._redis.port)))
        self.drain(WARMUP_JOBS)

    def drain(self, jobs: int) -> float:
        worker, producer = self._children
        worker.ask(MEASURE_DEADLINE_SECONDS, do="pause")
        producer.ask(MEASURE_DEADLINE_SECONDS, do="add", jobs=jobs)
        worker.ask(MEASURE_DEADLINE_SECONDS, do="arm", jobs=jobs)
        begin = worker.ask(MEASURE_DEADLINE_SECONDS, do="release")["started_at_ms"]
        end = worker.ask(MEASURE_DEADLINE_SECONDS, do="finish")["finished_at_ms"]
        return jobs * 1000 / float(end - begin)

    def enqueue(self, jobs: int) -> float:
        worker, producer = self._children
        worker.ask(MEASURE_DEADLINE_SECONDS, do="pause")
        seconds = producer.ask(MEASURE_DEADLINE_SECONDS, do="add", jobs=jobs)["seconds"]
        self._redis.flush()
        return jobs / float(seconds)

    def latency(self, rate: int, seconds: float) -> Latency:
        worker, producer = self._children
        jobs = round(rate * LATENCY_WARMUP_SECONDS) + round(rate * seconds)
        worker.ask(MEASURE_DEADLINE_SECONDS, do="arm", jobs=jobs)
        worker.ask(MEASURE_DEADLINE_SECONDS, do="release")
        paced = producer.ask(
            MEASURE_DEADLINE_SECONDS,
            do="pace",
            rate=rate,
            seconds=seconds,
            warmup_seconds=LATENCY_WARMUP_SECONDS,
        )
        check_rate_held(rate=rate, jobs=jobs, seconds=paced["seconds"])
        return Latency.of(worker.ask(MEASURE_DEADLINE_SECONDS, do="finish")["latencies_ms"])

    def stop(self) -> None:
        while self._children:
            self._children.pop().stop()
        self._redis.stop()
