"""What left the engine: a read_committed consumer of `jobs.completed`, outside of it.

Owns the counting of ends and the instants at which they were seen. Refuses to know who asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import orjson
from confluent_kafka import Consumer, Message, TopicPartition

from benchmarks.program import NotMeasuredError
from tidemill.agents.runtime.clients import take_arrived

# Records taken from the client at once, and the longest wait for the first of them.
BATCH_RECORDS = 10_000
POLL_SECONDS = 0.1
# One question about where a partition ends.
ASK_SECONDS = 10.0


class EndWatcher:
    """Reads a topic from where it ends now."""

    def __init__(self, kafka: str, topic: str) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": kafka,
                # Never joined and never committed; the client insists on a name.
                "group.id": "benchmark",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 100,
                "log_level": 0,
            }
        )
        found = self._consumer.list_topics(topic, timeout=ASK_SECONDS).topics[topic].partitions
        self._consumer.assign([self._end_of(topic, number) for number in found])

    def _end_of(self, topic: str, partition: int) -> TopicPartition:
        place = TopicPartition(topic, partition)
        ends = self._consumer.get_watermark_offsets(place, timeout=ASK_SECONDS, cached=False)
        return TopicPartition(topic, partition, ends[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._consumer.close()

    def count(self, ends: int, stall_seconds: float) -> float:
        """Waits for that many records; the `perf_counter` instant at which the last was seen."""
        seen = 0
        moved_at = time.perf_counter()
        while seen < ends:
            found = len(self._take())
            now = time.perf_counter()
            if found:
                seen, moved_at = seen + found, now
            elif now - moved_at > stall_seconds:
                raise NotMeasuredError(f"{seen} of {ends} jobs ended, then {stall_seconds} s none")
        return moved_at

    def instants(self, ends: int, stall_seconds: float) -> dict[str, float]:
        """Waits for that many different jobs; job_id -> instant at which its end was seen."""
        seen: dict[str, float] = {}

        def note(message: Message, now: float) -> None:
            seen.setdefault(orjson.loads(message.value() or b"{}")["job_id"], now)

        moved_at = time.perf_counter()
        while len(seen) < ends:
            found = self.each(note)
            now = time.perf_counter()
            if found:
                moved_at = now
            elif now - moved_at > stall_seconds:
                raise NotMeasuredError(
                    f"{len(seen)} of {ends} jobs ended, then {stall_seconds} s none"
                )
        return seen

    def each(self, note: Callable[[Message, float], None]) -> int:
        """Hands over what is there, with the instant at which it was seen; how many."""
        messages = self._take()
        now = time.perf_counter()
        for message in messages:
            note(message, now)
        return len(messages)

    def _take(self) -> list[Message]:
        return take_arrived(self._consumer, BATCH_RECORDS, POLL_SECONDS)
