"""Writing to a real broker whose answers get lost: each record once, in order, or not at all.

Owns the proof that a write which was asked for again adds nothing, in and outside of transactions,
and that a refused batch leaves neither records nor gaps in the sequence behind.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiokafka.client
import pytest
from aiokafka import errors
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest, EndTxnRequest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.cimpl import NewTopic

from tidemill.agents.runtime import batch_writer
from tidemill.agents.runtime.batch_writer import BatchWriter, TooLarge, TopicMissing
from tidemill.agents.runtime.batches_out import OutBatch
from tidemill.agents.runtime.errors import AbortableError, FatalError
from tidemill.agents.runtime.transaction import TransactionalProducer
from tidemill.agents.topics import admin_client
from tidemill.schemas.batch_builder import PAGE_BYTES_MAX, OutGroup, OutRecord, RecordPage

PARTITIONS = 2
SMALL_BYTES = 2_000  # what the topic `small` takes
READ_SECONDS = 10.0
GROUPS = 10


@pytest.fixture
def topic(kafka: str) -> str:
    return make_topic(kafka, {})


def make_topic(kafka: str, config: dict[str, str]) -> str:
    name = f"writer-{uuid.uuid4().hex[:8]}"
    admin = admin_client(kafka)
    admin.create_topics([NewTopic(name, PARTITIONS, 1, config=config)])[name].result()
    return name


def read(kafka: str, topic: str, partition: int = 0) -> list[bytes | None]:
    """All values that are committed, to the partition's end."""
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": uuid.uuid4().hex, "enable.partition.eof": True}
    )
    consumer.assign([TopicPartition(topic, partition, 0)])
    found: list[bytes | None] = []
    while (record := consumer.poll(READ_SECONDS)) is not None and record.error() is None:
        found.append(record.value())
    assert record is not None, "the partition's end was not reached: a transaction hangs"
    consumer.close()
    return found


def rows(topic: str, numbers: range, partition: int = 0) -> list[OutRecord]:
    return [(topic, partition, b"k", b"%d" % number, None) for number in numbers]


def lose_answers(writer: BatchWriter, is_lost: Callable[[int], bool]) -> list[Any]:
    """The broker does as it is asked; some answers never come. Returns what they answered."""
    lost: list[Any] = []
    send = writer.client.send
    counter = itertools.count(1)

    async def send_and_lose(node: int, request: Any, **where: Any) -> Any:
        answer = await send(node, request, **where)
        if is_lost(next(counter)):
            lost.append(request)
            raise errors.KafkaConnectionError("the test cut the line")
        return answer

    writer.client.send = send_and_lose
    return lost


@asynccontextmanager
async def transactional(kafka: str) -> AsyncIterator[TransactionalProducer]:
    producer = TransactionalProducer(kafka, f"writer-{uuid.uuid4().hex[:8]}")
    await producer.init()
    yield producer
    await producer.close()


@asynccontextmanager
async def plain(kafka: str) -> AsyncIterator[BatchWriter]:
    writer = BatchWriter(kafka, f"writer-{uuid.uuid4().hex[:8]}")
    await writer.connect()
    await writer.introduce()
    yield writer
    await writer.close()


def batch_of(topic: str, partition: int, values: list[bytes]) -> OutBatch:
    page = RecordPage()
    for value in values:
        assert page.append(None, value, None)
    return OutBatch((topic, partition), page, 1_790_000_000_000, codec=0)


async def test_who_leaves_while_connecting_leaves_no_connection(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    is_made = asyncio.Event()

    async def create_and_tell(*place: Any, **settings: Any) -> Any:
        made.append(await create_conn(*place, **settings))
        is_made.set()  # and the question about the cluster goes out in the same turn
        return made[-1]

    create_conn = aiokafka.client.create_conn
    monkeypatch.setattr(aiokafka.client, "create_conn", create_and_tell)
    writer = BatchWriter(kafka, "leaver")
    connecting = asyncio.create_task(writer.connect())
    await is_made.wait()
    connecting.cancel()
    await asyncio.wait({connecting})
    assert connecting.cancelled()
    await writer.close()
    assert made
    assert not any(connection.connected() for connection in made)


async def test_a_transaction_of_which_many_answers_are_lost_is_written_once(
    kafka: str, topic: str
) -> None:
    async with transactional(kafka) as producer:
        chance = random.Random(11)
        lost = lose_answers(producer._writer, lambda _: chance.random() < 0.4)
        for number in range(GROUPS):
            both = [rows(topic, range(number * 10, number * 10 + 10), p) for p in range(PARTITIONS)]
            await producer.commit_group(OutGroup(both[0] + both[1]))
    kinds = {type(request) for request in lost}
    assert {ProduceRequest, AddPartitionsToTxnRequest, EndTxnRequest} <= kinds
    for partition in range(PARTITIONS):
        assert read(kafka, topic, partition) == [b"%d" % number for number in range(GROUPS * 10)]


async def test_batches_whose_answers_are_lost_are_written_once(kafka: str, topic: str) -> None:
    async with plain(kafka) as writer:
        lose_answers(writer, lambda count: count % 3 != 0)
        for number in range(5):
            batches = [batch_of(topic, p, [b"%d" % number]) for p in range(PARTITIONS)]
            assert await writer.write(batches) == []
    for partition in range(PARTITIONS):
        assert read(kafka, topic, partition) == [b"%d" % number for number in range(5)]


async def test_a_group_of_several_batches_of_a_partition_keeps_its_order(
    kafka: str, topic: str
) -> None:
    large = b"x" * (PAGE_BYTES_MAX // 3)
    values = [b"%d" % number + large for number in range(10)]
    async with transactional(kafka) as producer:
        await producer.commit_group(OutGroup([(topic, 0, None, value, None) for value in values]))
        await producer.commit_group(OutGroup(rows(topic, range(10))))
    assert read(kafka, topic) == values + [b"%d" % number for number in range(10)]


async def test_an_abort_is_seen_by_nobody_and_the_sequence_goes_on(kafka: str, topic: str) -> None:
    async with transactional(kafka) as producer:
        await producer.send(OutGroup(rows(topic, range(5))))
        await producer.abort()
        await producer.commit_group(OutGroup(rows(topic, range(5, 8))))
    assert read(kafka, topic) == [b"5", b"6", b"7"]


async def test_a_cancelled_write_is_left_to_the_next_owner(kafka: str, topic: str) -> None:
    """An abort could overtake the batch, which would then hold up all readers for ever."""
    async with transactional(kafka) as producer:
        await producer.commit_group(OutGroup(rows(topic, range(2))))
        lost = lose_answers(producer._writer, lambda _: True)
        sending = asyncio.create_task(producer.send(OutGroup(rows(topic, range(2, 4)))))
        while not lost:  # noqa: ASYNC110  # the broker has begun the transaction
            await asyncio.sleep(0.01)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        asked = len(lost)
        await producer.close()
        assert len(lost) == asked
    heir = TransactionalProducer(kafka, producer.transactional_id)
    await heir.init()
    await heir.commit_group(OutGroup(rows(topic, range(4, 6))))
    await heir.close()
    assert read(kafka, topic) == [b"0", b"1", b"4", b"5"]


async def test_a_refused_batch_takes_its_group_back_and_leaves_no_gap(
    kafka: str, topic: str
) -> None:
    small = make_topic(kafka, {"max.message.bytes": str(SMALL_BYTES)})
    noise = b"".join(uuid.uuid4().bytes for _ in range(SMALL_BYTES))
    async with transactional(kafka) as producer:
        await producer.commit_group(OutGroup(rows(topic, range(2)) + rows(small, range(2))))
        with pytest.raises(TooLarge, match=small):
            await producer.commit_group(
                OutGroup([*rows(topic, range(2, 4)), (small, 0, None, noise, None)])
            )
        await producer.commit_group(OutGroup(rows(topic, range(4, 6)) + rows(small, range(4, 6))))
    for name in (topic, small):
        assert read(kafka, name) == [b"0", b"1", b"4", b"5"]


async def test_outside_of_a_transaction_only_the_refused_batch_is_left_out(
    kafka: str, topic: str
) -> None:
    small = make_topic(kafka, {"max.message.bytes": str(SMALL_BYTES)})
    async with plain(kafka) as writer:
        # A new topic may be unknown to its broker for a moment, and a batch then is in doubt.
        assert await writer.write([batch_of(name, 0, [b"0"]) for name in (topic, small)]) == []
        large = batch_of(small, 0, [b"x" * SMALL_BYTES])
        refused = await writer.write([batch_of(topic, 0, [b"1"]), large])
        assert [(batch, type(error)) for batch, error in refused] == [(large, TooLarge)]
        written = batch_of(small, 0, [b"2", b"3"])
        assert await writer.write([written]) == []
        assert written.base_offset == 1
    assert read(kafka, topic) == [b"0", b"1"]
    assert read(kafka, small) == [b"0", b"2", b"3"]


async def test_a_topic_that_is_not_there_is_named_with_the_way_out(
    kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_writer, "TOPIC_SECONDS_MAX", 0.5)
    async with transactional(kafka) as producer:
        with pytest.raises(TopicMissing, match=r"no-such-topic.*tidemill topics apply"):
            await producer.commit_group(OutGroup(rows("no-such-topic", range(1))))
        await producer.commit_group(OutGroup(rows(topic, range(1))))
    assert read(kafka, topic) == [b"0"]


async def test_a_coordinator_that_does_not_answer_ends_the_producer(
    kafka: str, topic: str
) -> None:
    """What it was asked may arrive later, and would then end the next transaction half-way."""
    async with transactional(kafka) as producer:
        send = producer._writer.client.send

        async def send_and_wait(node: int, request: Any, **where: Any) -> Any:
            if isinstance(request, EndTxnRequest):
                raise errors.RequestTimedOutError()
            return await send(node, request, **where)

        producer._writer.client.send = send_and_wait
        with pytest.raises(FatalError, match="no answer"):
            await producer.commit_group(OutGroup(rows(topic, range(2))))


@pytest.mark.parametrize(
    "first", [errors.NotEnoughReplicasAfterAppendError, errors.NotLeaderForPartitionError]
)
async def test_a_batch_in_doubt_that_is_then_refused_ends_the_writer(
    kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch, first: type[errors.KafkaError]
) -> None:
    """Its place in the sequence may be taken: the next batch there would count as known."""
    answers = [first, errors.MessageSizeTooLargeError]

    async def produce(_leader: int, batches: list[OutBatch]) -> Any:
        return [(batch, answers.pop(0)) for batch in batches]

    async with plain(kafka) as writer:
        monkeypatch.setattr(writer, "_produce", produce)
        with pytest.raises(FatalError, match="in doubt, then refused"):
            await writer.write([batch_of(topic, 0, [b"1"])])


@pytest.mark.parametrize(
    "first",
    [errors.NodeNotReadyError, errors.UnknownTopicOrPartitionError, errors.NotEnoughReplicasError],
)
async def test_a_batch_that_cannot_have_been_written_is_in_no_doubt(
    kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch, first: type[errors.KafkaError]
) -> None:
    answers = [first, errors.MessageSizeTooLargeError]

    async def produce(_leader: int, batches: list[OutBatch]) -> Any:
        return [(batch, answers.pop(0)) for batch in batches]

    async with plain(kafka) as writer:
        monkeypatch.setattr(writer, "_produce", produce)
        batch = batch_of(topic, 0, [b"1"])
        refused = await writer.write([batch])
    assert [(found, type(error)) for found, error in refused] == [(batch, TooLarge)]


async def test_an_answer_that_leaves_a_partition_out_ends_the_writer(
    kafka: str, topic: str
) -> None:
    async with plain(kafka) as writer:
        send = writer.client.send

        async def send_and_cut(node: int, request: Any, **where: Any) -> Any:
            answer = await send(node, request, **where)
            if isinstance(request, ProduceRequest):
                answer.topics = [(name, found[1:]) for name, found in answer.topics]
            return answer

        writer.client.send = send_and_cut
        with pytest.raises(FatalError, match="1 of 2 partitions"):
            await writer.write([batch_of(topic, p, [b"1"]) for p in range(PARTITIONS)])


async def test_an_error_that_nobody_knows_ends_the_writer(kafka: str, topic: str) -> None:
    async with plain(kafka) as writer:
        writer.take_identity(writer.producer_id, writer.epoch + 1)
        writer._sequences[topic, 0] = 5
        await writer.write([batch_of(topic, 0, [b"1"])])
        writer._sequences[topic, 0] = 50
        with pytest.raises(FatalError, match="OutOfOrderSequence") as caught:
            await writer.write([batch_of(topic, 0, [b"2"])])
        assert not isinstance(caught.value, AbortableError)
    assert read(kafka, topic) == [b"1"]
