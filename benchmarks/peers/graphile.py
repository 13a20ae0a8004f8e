"""Graphile Worker on Postgres, with the settings of its own published numbers.

Drain: the jobs are added in one transaction, whose commit lets the warm worker at all of them; the
clock runs from there until the last job's row is gone, which is how Graphile Worker records an
end (its batched completion ends a job after its function has returned).
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
from benchmarks.servers import POSTGRES_SETTINGS, Postgres, postgres_folder


class Graphile:
    """See `Program`."""

    name = "graphile"
    title = "Graphile Worker 0.17 (Postgres)"
    settings: ClassVar[Mapping[str, str]] = {
        "server": POSTGRES_SETTINGS,
        "worker": "one process, 24 jobs at once, local queue 500, batched completion",
        "enqueue": "add_jobs of 10,000",
        "latency": "until the job's function ran (in its favour: its completion comes later)",
        "version": "0.18 asks for Node.js 22.18",
    }

    def __init__(self) -> None:
        self._postgres = Postgres()
        self._folder = Path()
        self._children: list[Child] = []

    def install(self) -> None:
        postgres_folder()
        self._folder = install_node_peer(self.name)

    def start(self) -> None:
        self._postgres.start()
        # The producer comes first, since it creates the schema.
        for role in ("producer", "worker"):
            self._children.append(start_node(self._folder, role, self._postgres.url))
        self.drain(WARMUP_JOBS)

    def drain(self, jobs: int) -> float:
        producer, worker = self._children
        producer.ask(MEASURE_DEADLINE_SECONDS, do="hold", jobs=jobs)
        worker.ask(MEASURE_DEADLINE_SECONDS, do="arm", jobs=jobs)
        begin = producer.ask(MEASURE_DEADLINE_SECONDS, do="release")["started_at_ms"]
        end = worker.ask(MEASURE_DEADLINE_SECONDS, do="finish")["finished_at_ms"]
        return jobs * 1000 / float(end - begin)

    def enqueue(self, jobs: int) -> float:
        producer, worker = self._children
        worker.ask(MEASURE_DEADLINE_SECONDS, do="arm", jobs=jobs)
        worker.freeze()
        seconds = producer.ask(MEASURE_DEADLINE_SECONDS, do="add", jobs=jobs)["seconds"]
        worker.thaw()
        worker.ask(MEASURE_DEADLINE_SECONDS, do="finish")
        return jobs / float(seconds)

    def latency(self, rate: int, seconds: float) -> Latency:
        producer, worker = self._children
        jobs = round(rate * LATENCY_WARMUP_SECONDS) + round(rate * seconds)
        worker.ask(MEASURE_DEADLINE_SECONDS, do="arm", jobs=jobs)
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
        self._postgres.stop()
