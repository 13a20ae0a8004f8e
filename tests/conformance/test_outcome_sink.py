"""`OutcomeSink`: what the writer relies on, against the memory adapter and against real Kafka."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.cimpl import NewTopic

from tests.unit.worker_harness import until
from tidemill.agents.topics import admin_client
from tidemill.agents.worker import kafka_sink
from tidemill.agents.worker.kafka_sink import KafkaSink
from tidemill.agents.worker.writer import MemorySink, OutcomeSink

PARTITIONS = 2
BYTES_MAX = 10_000
READ_SECONDS = 10.0


class Under:
    """The adapter under test and a way to read what is durable in a partition."""

    def __init__(self, sink: OutcomeSink, read: Callable[[int, int], list[bytes]]) -> None:
        self.sink = sink
        self.read = read


def kafka_reader(kafka: str, topic: str) -> Callable[[int, int], list[bytes]]:
    """Reads what comes after the first record of each partition."""

    def read(partition: int, count: int) -> list[bytes]:
        consumer = Consumer({"bootstrap.servers": kafka, "group.id": uuid.uuid4().hex})
        consumer.assign([TopicPartition(topic, partition, 1)])
        found: list[bytes] = []
        while len(found) < count and (record := consumer.poll(READ_SECONDS)) is not None:
            found.append(record.value() or b"")
        consumer.close()
        return found

    return read


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.real)])
async def under(request: pytest.FixtureRequest) -> AsyncIterator[Under]:
    if request.param == "memory":
        memory = MemorySink(bytes_max=BYTES_MAX)
        yield Under(
            memory,
            lambda partition, count: [v for p, v in memory.records if p == partition][:count],
        )
        return
    kafka: str = request.getfixturevalue("kafka")
    topic = f"conformance-{uuid.uuid4().hex[:8]}"
    config = {"max.message.bytes": str(BYTES_MAX)}
    admin = admin_client(kafka)
    admin.create_topics([NewTopic(topic, PARTITIONS, 1, config=config)])[topic].result()
    sink = KafkaSink(kafka, topic, "conformance", codec=0)
    # A new topic may be led by nobody for a moment, and what is written then is in doubt.
    written: list[bool] = []
    for partition in range(PARTITIONS):
        sink.send(partition, b"first", written.append)
    await until(lambda: len(written) == PARTITIONS)
    yield Under(sink, kafka_reader(kafka, topic))
    await sink.close()


async def test_done_is_called_once_on_the_loop_after_send_returned(under: Under) -> None:
    done: list[tuple[str, bool]] = []
    loop = asyncio.get_running_loop()

    def note(is_too_large: bool) -> None:
        assert asyncio.get_running_loop() is loop
        done.append(("done", is_too_large))

    under.sink.send(1, b"value", note)
    done.append(("returned", False))
    await until(lambda: len(done) == 2)
    assert done == [("returned", False), ("done", False)]
    assert under.read(1, 1) == [b"value"]


async def test_records_of_a_partition_keep_their_order(under: Under) -> None:
    values = [b"%d" % number for number in range(200)]
    done: list[bool] = []
    for value in values:
        under.sink.send(0, value, done.append)
    await until(lambda: len(done) == len(values))
    assert not any(done)
    assert under.read(0, 200) == values


async def test_what_is_too_large_for_good_is_told_and_the_next_goes_on(under: Under) -> None:
    told: list[tuple[str, bool]] = []
    under.sink.send(0, b"x" * (BYTES_MAX + 1_000), lambda large: told.append(("large", large)))
    await until(lambda: told)
    under.sink.send(0, b"fits", lambda large: told.append(("fits", large)))
    await until(lambda: len(told) == 2)
    assert told == [("large", True), ("fits", False)]
    assert under.read(0, 1) == [b"fits"]


async def test_more_than_any_topic_takes_is_told_too(under: Under) -> None:
    told: list[bool] = []
    under.sink.send(0, b"x" * (kafka_sink.RECORD_BYTES_MAX + 1_000), told.append)
    assert told == []
    await until(lambda: told)
    assert told == [True]
