"""One record of the log by its place, to see whether a row is that of this log.

Owns a consumer for the time of one look. Refuses to know what is in a record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition

from tidemill.agents.clickhouse.engine import EngineUnavailable
from tidemill.agents.runtime.clients import client_settings

ANSWER_SECONDS: Final = 15.0  # a broker that has just started, or one under load


class Found(NamedTuple):
    """A record of the log, as `tidemill.agents.runtime.chunk.Record` has it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


def read_record(kafka: str, topic: str, partition: int, offset: int) -> Found | None:
    """The record at just that place; None when the log has none there, or no longer. Blocks.

    Raises EngineUnavailable when the broker does not answer: it is asked again, as ClickHouse is.
    """
    consumer = Consumer(
        client_settings(
            kafka, "tidemill-sink-look",
            {"group.id": "tidemill-sink-look", "enable.auto.commit": False},
        )
    )
    place = TopicPartition(topic, partition, offset)
    try:
        start, end = consumer.get_watermark_offsets(place, ANSWER_SECONDS)
        if not start <= offset < end:
            return None
        consumer.assign([place])
        found = consumer.poll(ANSWER_SECONDS)
    except KafkaException as error:
        raise EngineUnavailable(f"{topic}-{partition} at {offset}: {error}") from error
    finally:
        consumer.close()
    if found is None or found.error() is not None:
        raise EngineUnavailable(f"{topic}-{partition} at {offset}: the broker does not answer")
    if found.offset() != offset:
        return None
    headers: Any = found.headers() or ()
    key: Any = found.key()
    value: Any = found.value()
    return Found(offset, found.timestamp()[1], key, value, headers)
