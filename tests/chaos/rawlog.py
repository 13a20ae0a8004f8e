"""Reads a topic from its first record to its end, as any read_committed stranger would.

Owns the consumer. Refuses to know what is in the records.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_INVALID,
    Consumer,
    KafkaException,
    TopicPartition,
)

BATCH_RECORDS: Final = 5_000  # records of one call into librdkafka
SILENCE_SECONDS_MAX: Final = 60.0  # without any progress: the end cannot be reached
METADATA_SECONDS: Final = 20.0

RawHeaders = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record as it lies in the log."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: RawHeaders = ()
    has_odd_headers: bool = False  # a name is no text, so none could be read


class LogUnreadable(RuntimeError):
    """A topic could not be read to its end: a transaction hangs open, or the broker is away."""


def reader(kafka: str) -> Consumer:
    """A consumer that joins no group, commits nothing and sees committed records only."""
    return Consumer(
        {
            "bootstrap.servers": kafka,
            "group.id": "chaos-checker",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
            "fetch.message.max.bytes": 16 * 1_048_576,
            "queued.max.messages.kbytes": 65_536,
            "enable.partition.eof": False,
            "log_level": 2,
        }
    )


def ends_of(consumer: Consumer, topic: str) -> dict[int, int]:
    """Partition -> offset at which a read_committed reader stands at its end."""
    listed = consumer.list_topics(topic, timeout=METADATA_SECONDS).topics[topic]
    if listed.error is not None:
        raise KafkaException(listed.error)
    ends: dict[int, int] = {}
    for number in listed.partitions:
        marks = consumer.get_watermark_offsets(
            TopicPartition(topic, number), timeout=METADATA_SECONDS
        )
        if marks is None:
            raise LogUnreadable(f"{topic}[{number}]: the broker gives no end offset")
        ends[number] = marks[1]
    return ends


def read_topic(kafka: str, topic: str) -> Iterator[RawRecord]:
    """Every committed record of `topic`, in order within each partition, to the end of now."""
    consumer = reader(kafka)
    try:
        ends = ends_of(consumer, topic)
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in ends])
        last_progress = time.monotonic()
        before: list[int] = []
        while True:
            for message in consumer.consume(BATCH_RECORDS, timeout=0.2):
                if message.error() is not None:
                    raise KafkaException(message.error())
                yield raw_of(message)
            positions = [
                part.offset
                for part in consumer.position([TopicPartition(topic, n) for n in sorted(ends)])
            ]
            if _is_at_end(positions, [ends[n] for n in sorted(ends)]):
                return
            if positions != before:
                before, last_progress = positions, time.monotonic()
            elif time.monotonic() - last_progress > SILENCE_SECONDS_MAX:
                raise LogUnreadable(f"{topic}: stuck at {positions}, the end is {ends}")
    finally:
        consumer.close()


def _is_at_end(positions: list[int], ends: list[int]) -> bool:
    # A partition that gave nothing yet has no position; it is at its end only when it is empty.
    return all(
        end == 0 if position == OFFSET_INVALID else position >= end
        for position, end in zip(positions, ends, strict=True)
    )


def raw_of(message: Any) -> RawRecord:
    """A consumed message as it lies in the log."""
    known = (
        message.topic(), message.partition(), message.offset(), message.timestamp()[1],
        message.key(), message.value(),
    )
    try:
        return RawRecord(*known, tuple(message.headers() or ()))
    except (UnicodeDecodeError, SystemError):
        # A name that is no UTF-8: the Python client cannot give these headers at all. It tells so
        # only when the next object is made, by the second of these errors.
        return RawRecord(*known, (), has_odd_headers=True)


def record_count(kafka: str, topic: str) -> int:
    """Sum of the end offsets: cheap, counts markers too; good for "has anything moved"."""
    consumer = reader(kafka)
    try:
        return sum(ends_of(consumer, topic).values())
    finally:
        consumer.close()
