"""History: how soon ClickHouse has what the engine did, in the whole stack of `tidemill dev`.

Owns two measurements. *Catch-up*: a backlog is drained; the seconds from the last end until the
end of every job is a row. *Visible*: jobs come at a steady rate; the time from the instant that an
event's record carries (before its transaction is committed) to a query that finds its row.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from confluent_kafka import Message

from benchmarks.dev_stack import DevStack
from benchmarks.pace import Pace
from benchmarks.program import (
    MEASURE_DEADLINE_SECONDS,
    WARMUP_JOBS,
    Latency,
    NotMeasuredError,
    check_rate_held,
)
from benchmarks.tidemill_programs import ENDED, TOPICS, dev, new_tag, noops
from benchmarks.watching import EndWatcher

JOBS = 100_000
QUICK_JOBS = 10_000
RATE = 2_000
SECONDS = 20.0
QUICK_SECONDS = 3.0
# Between two queries for what can be seen.
ASK_EVERY_SECONDS = 0.1
# Before the start of a measurement; its events are certainly later.
CLOCK_MARGIN_MS = 1_000
STALL_SECONDS = 30.0


def measure_catch_up(*, is_quick: bool) -> dict[str, Any]:
    """After a drain from a ledger that had seen nothing: the whole work of the sink is in it."""
    jobs = QUICK_JOBS if is_quick else JOBS
    program = dev()
    try:
        program.start()
        rate = program.drain_alone(jobs)
        begun = time.perf_counter()
        program.stack.wait_rows(WARMUP_JOBS + jobs, ENDED, MEASURE_DEADLINE_SECONDS)
        seconds = time.perf_counter() - begun
    finally:
        program.stop()
    return {"jobs": jobs, "drain_jobs_per_second": round(rate), "seconds": round(seconds, 2)}


def measure_visible(*, is_quick: bool) -> dict[str, Any]:
    """Event to row, at a steady rate through the whole pipeline."""
    seconds = QUICK_SECONDS if is_quick else SECONDS
    program = dev()
    try:
        program.start()
        found = _visible(program.stack, round(RATE * seconds))
    finally:
        program.stop()
    return {
        "jobs_per_second": RATE,
        "events": found.jobs,
        "p50_ms": round(found.p50_ms),
        "p99_ms": round(found.p99_ms),
    }


def _visible(stack: DevStack, jobs: int) -> Latency:
    seen = _Seen(stack)
    with EndWatcher(stack.kafka, TOPICS.events) as events:
        pace = Pace(stack.kafka, list(noops(jobs, new_tag())), RATE)
        pace.start()
        ask_at = moved_at = time.monotonic()
        while seen.ended < jobs or seen.is_waiting:
            if events.each(seen.note):
                moved_at = time.monotonic()
            if time.monotonic() >= ask_at:
                moved_at = time.monotonic() if seen.ask() else moved_at
                ask_at = time.monotonic() + ASK_EVERY_SECONDS
            if time.monotonic() - moved_at > STALL_SECONDS:
                raise NotMeasuredError(f"{seen.ended} of {jobs} jobs ended, then nothing moved")
        pace.finish()
    check_rate_held(rate=RATE, jobs=jobs, seconds=pace.seconds)
    return Latency.of(seen.delays_ms)


class _Seen:
    """Events that were read from the log, until their rows can be read."""

    def __init__(self, stack: DevStack) -> None:
        self._stack = stack
        # Rows of what ran before would be read again with each question, in the sink's process.
        self._since_ms = int(time.time() * 1000) - CLOCK_MARGIN_MS
        self._waiting: dict[int, deque[tuple[int, int]]] = {}
        self.delays_ms: list[float] = []
        self.ended = 0

    @property
    def is_waiting(self) -> bool:
        return any(self._waiting.values())

    def note(self, message: Message, now: float) -> None:
        partition, offset = message.partition(), message.offset()
        if partition is None or offset is None:
            raise NotMeasuredError("a record of the log has no position")
        self._waiting.setdefault(partition, deque()).append((offset, message.timestamp()[1]))
        self.ended += b'"event":"succeeded"' in (message.value() or b"")

    def ask(self) -> bool:
        """Which rows are there now; whether there were new ones. Rows of a partition come in the
        order of their offsets, so the highest one speaks for all before it."""
        sql = (
            "SELECT kafka_partition AS p, max(kafka_offset) AS o FROM job_events"
            f" WHERE occurred_at >= fromUnixTimestamp64Milli({self._since_ms}) GROUP BY p"
        )
        found = {int(row["p"]): int(row["o"]) for row in self._stack.sql(sql)}
        now_ms = time.time() * 1000
        before = len(self.delays_ms)
        for partition, waiting in self._waiting.items():
            while waiting and waiting[0][0] <= found.get(partition, -1):
                self.delays_ms.append(now_ms - waiting.popleft()[1])
        return len(self.delays_ms) > before
