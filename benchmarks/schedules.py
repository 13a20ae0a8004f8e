"""Schedules: from the instant that is due to the event that says that its job is asked for.

Owns two cases of many cron schedules, each due once a minute: spread over the seconds of a minute,
and all at one instant. Refuses to know how the ledger keeps them. Two times are told of each tick:
`requested`, the event's own instant, which is when its group began to decide; and `seen`, when a
read_committed consumer had the event in its hands.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from confluent_kafka import Message

from benchmarks.dev_stack import DevStack
from benchmarks.processes import wait_until
from benchmarks.program import NotMeasuredError, percentile
from benchmarks.schedule_jobs import COUNT_VARIABLE, SECONDS_VARIABLE
from benchmarks.schedule_jobs import __file__ as MODULE_FILE
from benchmarks.tidemill_programs import TOPICS
from benchmarks.watching import EndWatcher
from tidemill.agents.schedule_log import ScheduleLog

SCHEDULES = 10_000
QUICK_SCHEDULES = 1_000
MINUTES = 3
QUICK_MINUTES = 1
CONCURRENCY = 100
# Until a ledger has heard of all of them, and has made a row of each.
KNOWN_SECONDS = 120.0
# From the last instant on: longer than any that counts as measured.
STALL_SECONDS = 60.0
MINUTE_MS = 60_000


class Ticks:
    """What was seen of ticks from an instant on; what is due before counts for nothing."""

    def __init__(self, begin_ms: float) -> None:
        self._begin_ms = begin_ms
        # perf_counter's zero on the clock of instants.
        self._zero = time.time() - time.perf_counter()
        self.requested_ms: dict[str, float] = {}
        self.seen_ms: dict[str, float] = {}

    def note(self, message: Message, now: float) -> None:
        """One event."""
        value = message.value() or b""
        if b'"requested"' not in value:
            return
        event = orjson.loads(value)
        if event["event"] != "requested":
            return
        job_id = event["job_id"]
        instant_ms = _ms(job_id.rpartition("@")[2])
        if instant_ms < self._begin_ms:
            return
        self.requested_ms[job_id] = _ms(event["occurred_at"]) - instant_ms
        self.seen_ms[job_id] = (self._zero + now) * 1000 - instant_ms


def _ms(text: str) -> float:
    return datetime.fromisoformat(text).timestamp() * 1000


def measure(*, is_quick: bool) -> dict[str, Any]:
    """Both cases, each with a stack of its own."""
    count = QUICK_SCHEDULES if is_quick else SCHEDULES
    minutes = QUICK_MINUTES if is_quick else MINUTES
    return {
        "schedules": count,
        "minutes": minutes,
        "spread": _one_case(count, minutes, seconds=60),
        "one_instant": _one_case(count, minutes, seconds=1),
    }


def _one_case(count: int, minutes: int, *, seconds: int) -> dict[str, Any]:
    environment = {COUNT_VARIABLE: str(count), SECONDS_VARIABLE: str(seconds)}
    stack = DevStack(concurrency=CONCURRENCY, module=MODULE_FILE, environment=environment)
    try:
        stack.start()
        wait_until(lambda: _known(stack.kafka) >= count, KNOWN_SECONDS, "all schedules", 1.0)
        used = stack.cpu_seconds()["ledger"]
        ticks = _watched(stack.kafka, count, minutes)
        used = stack.cpu_seconds()["ledger"] - used
    finally:
        stack.stop()
    return _summary(ticks, used / len(ticks.requested_ms))


def _known(kafka: str) -> int:
    with ScheduleLog(kafka, TOPICS) as log:
        return len(log.records)


def _watched(kafka: str, count: int, minutes: int) -> Ticks:
    """All ticks of whole minutes."""
    with EndWatcher(kafka, TOPICS.events) as events:
        begin_ms = (int(time.time() * 1000) // MINUTE_MS + 1) * MINUTE_MS
        ticks = Ticks(begin_ms)
        deadline = begin_ms / 1000 + minutes * 60 + STALL_SECONDS
        while (found := len(ticks.requested_ms)) < count * minutes:
            if time.time() > deadline:
                raise NotMeasuredError(f"{found} of {count * minutes} ticks were asked for")
            events.each(ticks.note)
    return ticks


def _summary(ticks: Ticks, ledger_seconds: float) -> dict[str, Any]:
    return {
        "ticks": len(ticks.requested_ms),
        "ledger_cpu_us_a_tick": round(ledger_seconds * 1_000_000),
        **_percentiles("requested", ticks.requested_ms),
        **_percentiles("seen", ticks.seen_ms),
    }


def _percentiles(name: str, found: Mapping[str, float]) -> dict[str, float]:
    ordered: Sequence[float] = sorted(found.values())
    return {
        f"{name}_p50_ms": round(percentile(ordered, 0.5)),
        f"{name}_p99_ms": round(percentile(ordered, 0.99)),
        f"{name}_max_ms": round(ordered[-1]),
    }
