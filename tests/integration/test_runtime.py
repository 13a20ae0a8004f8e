"""The runtime against a real broker: order, acks, restore, fencing, fail-stop, rebalance."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiokafka
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from faust.types import TP

from tidemill.agents import exit_codes
from tidemill.agents.runtime import restore
from tidemill.agents.runtime.batches_out import RECORD_BYTES_MAX
from tidemill.agents.runtime.clients import client_settings, take_arrived
from tidemill.agents.runtime.commits import commit_as_owner
from tidemill.agents.runtime.errors import FencedError, PoisonMessage
from tidemill.agents.runtime.failstop import EXIT_FAIL_STOP
from tidemill.agents.runtime.producer import BatchProducer
from tidemill.agents.runtime.restore import read_compacted
from tidemill.agents.runtime.transaction import TransactionalProducer
from tidemill.schemas.batch_builder import OutGroup

ROOT = Path(__file__).resolve().parents[2]
LEDGER = Path(__file__).with_name("runtime_ledger.py")
PARTITIONS = 4
DEADLINE_SECONDS = 60.0


@pytest.fixture
def admin(kafka: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka})


@pytest.fixture
def app_id(admin: AdminClient) -> str:
    """An application id of its own, with all of its topics."""
    name = f"rt-{uuid.uuid4().hex[:8]}"
    suffixes = (".requested", ".outcomes", ".completed", "-state", "-ledger-changelog")
    topics = [NewTopic(f"{name}{suffix}", PARTITIONS, 1) for suffix in suffixes]
    for created in admin.create_topics(topics).values():
        created.result()
    return name


class Process:
    """A ledger process whose output can be waited for."""

    def __init__(self, app_id: str, kafka: str, instance: str, **env: str) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.popen = subprocess.Popen(
            [sys.executable, str(LEDGER), app_id, kafka, instance],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, wanted: Callable[[list[str]], bool]) -> None:
        with self._changed:
            found = self._changed.wait_for(lambda: wanted(self.lines), DEADLINE_SECONDS)
        assert found, "\n".join(self.lines)

    def wait_owns(self, count: int) -> None:
        self.wait_for(lambda lines: len(owned(lines)) == count)

    def end(self, number: int) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.popen.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        return code


def owned(lines: list[str]) -> list[str]:
    """The partitions that the last rebalance left to the process."""
    said = [line for line in lines if line.startswith("owns ")]
    return [part for part in said[-1][6:-1].split(", ") if part] if said else []


@pytest.fixture
def start(app_id: str, kafka: str) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start_one(instance: str, **env: str) -> Process:
        processes.append(Process(app_id, kafka, instance, **env))
        return processes[-1]

    yield start_one
    for process in processes:
        process.end(signal.SIGKILL)
        assert process.popen.stdout is not None
        process.popen.stdout.close()


def produce(kafka: str, topic: str, values: range) -> None:
    # Idempotent, since a plain producer may reorder what it has to send again.
    producer = Producer({"bootstrap.servers": kafka, "enable.idempotence": True})
    for value in values:
        producer.produce(topic, str(value).encode(), b"user", value % PARTITIONS)
    assert producer.flush(DEADLINE_SECONDS) == 0
    producer.close()


class Completed:
    """What a read_committed reader has seen so far, per partition and in order."""

    def __init__(self, kafka: str, app_id: str) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": kafka,
                "group.id": f"check-{uuid.uuid4().hex}",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
            }
        )
        topic = f"{app_id}.completed"
        self._consumer.assign([TopicPartition(topic, p, 0) for p in range(PARTITIONS)])
        self.values: dict[int, list[int]] = {p: [] for p in range(PARTITIONS)}

    def read_until(self, count: int) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.count < count and time.monotonic() < deadline:
            for message in self._consumer.consume(1_000, timeout=0.1):
                value, partition = message.value(), message.partition()
                assert value is not None
                assert partition is not None
                self.values[partition].append(int(value))

    @property
    def count(self) -> int:
        return sum(map(len, self.values.values()))

    def assert_exactly(self, values: range) -> None:
        """Each value once, in order, in its partition; nothing more for a while."""
        self.read_until(len(values))
        for message in self._consumer.consume(1, timeout=1.0):
            raise AssertionError(f"one too many: {message.value()!r}")
        expected = {p: [v for v in values if v % PARTITIONS == p] for p in range(PARTITIONS)}
        assert self.values == expected
        self.close()

    def close(self) -> None:
        self._consumer.close()


def committed(kafka: str, app_id: str, topic: str) -> list[int]:
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": app_id})
    found = consumer.committed([TopicPartition(topic, p) for p in range(PARTITIONS)], timeout=10)
    consumer.close()
    return [tp.offset for tp in found]


def test_records_flow_once_and_in_order_through_kill_9(
    app_id: str, kafka: str, start: Callable[..., Process]
) -> None:
    produce(kafka, f"{app_id}.requested", range(20_000))
    seen = Completed(kafka, app_id)
    for round_ in range(3):
        process = start("a")
        process.wait_owns(PARTITIONS)
        seen.read_until(2_000 * (round_ + 1))
        process.end(signal.SIGKILL)
    last = start("a")
    seen.assert_exactly(range(20_000))
    restored = [line for line in last.lines if line.startswith("restored ")]
    assert any(not line.endswith(" 0") for line in restored), "the state was not read back"
    assert last.end(signal.SIGTERM) == 0
    assert sum(committed(kafka, app_id, f"{app_id}.requested")) == 20_000


def test_a_second_process_takes_its_share_and_gives_it_back(
    app_id: str, kafka: str, start: Callable[..., Process]
) -> None:
    topic = f"{app_id}.requested"
    produce(kafka, topic, range(2_000))
    first = start("a")
    first.wait_owns(PARTITIONS)
    second = start("b")
    produce(kafka, topic, range(2_000, 4_000))
    second.wait_owns(PARTITIONS // 2)
    first.wait_owns(PARTITIONS // 2)
    assert not set(owned(first.lines)) & set(owned(second.lines))
    produce(kafka, topic, range(4_000, 6_000))
    assert second.end(signal.SIGTERM) == 0
    first.wait_owns(PARTITIONS)
    produce(kafka, topic, range(6_000, 8_000))
    Completed(kafka, app_id).assert_exactly(range(8_000))


def test_a_stopped_process_that_continues_adds_nothing(
    app_id: str, kafka: str, start: Callable[..., Process]
) -> None:
    topic = f"{app_id}.requested"
    produce(kafka, topic, range(1_000))
    zombie = start("a")
    zombie.wait_owns(PARTITIONS)
    seen = Completed(kafka, app_id)
    seen.read_until(500)
    zombie.popen.send_signal(signal.SIGSTOP)
    heir = start("b")
    heir.wait_owns(PARTITIONS)
    produce(kafka, topic, range(1_000, 3_000))
    zombie.popen.send_signal(signal.SIGCONT)
    produce(kafka, topic, range(3_000, 4_000))
    seen.assert_exactly(range(4_000))


def test_an_exception_in_an_agent_ends_the_process_and_acks_nothing(
    app_id: str, kafka: str, start: Callable[..., Process]
) -> None:
    topic = f"{app_id}.requested"
    produce(kafka, topic, range(1))
    process = start("a", RUNTIME_RAISE_AT="0")
    assert process.wait() == EXIT_FAIL_STOP
    assert any("asked to raise" in line for line in process.lines)
    assert all(offset < 0 for offset in committed(kafka, app_id, topic))
    start("a")
    Completed(kafka, app_id).assert_exactly(range(1))


def test_a_deleted_record_that_was_not_applied_is_fatal(
    app_id: str, kafka: str, admin: AdminClient, start: Callable[..., Process]
) -> None:
    topic = f"{app_id}.requested"
    produce(kafka, topic, range(4))
    process = start("a")
    Completed(kafka, app_id).assert_exactly(range(4))
    assert process.end(signal.SIGTERM) == 0
    produce(kafka, topic, range(4, 12))
    for deleted in admin.delete_records([TopicPartition(topic, 2, 3)]).values():
        deleted.result()
    process = start("a")
    assert process.wait() == exit_codes.GAP
    said = "\n".join(process.lines)
    assert f"topic {topic}, partition 2" in said
    assert "offset 1" in said
    assert "3 to 3" in said


async def test_an_older_owner_is_fenced_and_its_group_is_never_seen(
    app_id: str, kafka: str
) -> None:
    topic = f"{app_id}.completed"
    older = TransactionalProducer(kafka, f"{app_id}-fence")
    await older.init()
    await older.commit_group(OutGroup([(topic, 0, b"k", b"0", None)]))
    newer = TransactionalProducer(kafka, f"{app_id}-fence")
    await newer.init()
    with pytest.raises(FencedError):
        await older.commit_group(OutGroup([(topic, 1, b"k", b"1", None)]))
    await older.close()
    await newer.commit_group(OutGroup([(topic, 0, b"k", b"4", [("kind", b"x"), ("other", None)])]))
    await newer.close()
    seen = Completed(kafka, app_id)
    seen.read_until(2)
    seen.close()
    assert seen.values == {0: [0, 4], 1: [], 2: [], 3: []}


async def test_who_is_no_member_any_more_sets_no_offsets_back(app_id: str, kafka: str) -> None:
    topic = f"{app_id}.requested"
    settings: dict[str, Any] = {
        "bootstrap_servers": kafka, "group_id": app_id, "enable_auto_commit": False
    }
    place = TP(topic, 0)
    owner = aiokafka.AIOKafkaConsumer(topic, **settings)
    await owner.start()
    generation = owner._coordinator.generation
    assert await commit_as_owner(owner, generation, {place: (5, "a note")})
    await owner.stop()
    # The group is empty now, and an empty group takes offsets from anybody.
    stranger = aiokafka.AIOKafkaConsumer(**settings)
    stranger.assign([aiokafka.TopicPartition(*place)])
    await stranger.start()
    await stranger.commit({aiokafka.TopicPartition(*place): 4})
    assert not await commit_as_owner(stranger, generation, {place: (3, "")})
    await stranger.stop()
    assert committed(kafka, app_id, topic)[0] == 4


async def test_a_record_that_is_too_large_is_poison_and_leaves_nothing(
    app_id: str, kafka: str
) -> None:
    topic = f"{app_id}.completed"
    producer = TransactionalProducer(kafka, f"{app_id}-large")
    await producer.init()
    with pytest.raises(PoisonMessage, match=topic):
        await producer.commit_group(OutGroup(
            [(topic, 0, b"k", b"0", None), (topic, 0, b"k", b"x" * (RECORD_BYTES_MAX + 1), None)]
        ))
    await producer.commit_group(OutGroup([(topic, 1, b"k", b"1", None)]))
    await producer.close()
    seen = Completed(kafka, app_id)
    seen.read_until(1)
    seen.close()
    assert seen.values == {0: [], 1: [1], 2: [], 3: []}


async def test_the_state_is_read_to_its_end_past_markers_and_aborted_rows(
    app_id: str, kafka: str
) -> None:
    topic = f"{app_id}-state"
    producer = TransactionalProducer(kafka, f"{app_id}-rows")
    await producer.init()
    assert list(read_compacted(kafka, topic, 0)) == []
    for number in range(3):
        await producer.commit_group(OutGroup([(topic, 0, b"k%d" % number, b"v", None)] * 50))
        await producer.send(OutGroup([(topic, 0, b"aborted", b"v", None)] * 50))
        await producer.abort()
    await producer.commit_group(OutGroup([(topic, 0, b"k0", None, None)]))
    await producer.close()
    rows = [row for batch in read_compacted(kafka, topic, 0) for row in batch]
    expected = [(b"k%d" % number, b"v") for number in range(3) for _ in range(50)]
    assert rows == [*expected, (b"k0", None)]


@pytest.mark.parametrize(
    ("records_max", "sleeps"),
    [(restore.FETCH_RECORDS_MAX, False), (100_000, True)],  # the client's own default
    ids=["ours", "the client's own"],
)
def test_a_restore_never_sleeps_while_rows_are_there(
    admin: AdminClient,
    app_id: str,
    kafka: str,
    monkeypatch: pytest.MonkeyPatch,
    records_max: int,
    sleeps: bool,
) -> None:
    """A client that holds more records than its bound pauses its fetching, and says so."""
    topic, rows = f"{app_id}-state", 300_000
    producer = Producer({"bootstrap.servers": kafka, "queue.buffering.max.messages": rows})
    for number in range(rows):
        producer.produce(topic, b"v" * 20, b"%d" % number, 0)
    assert producer.flush(DEADLINE_SECONDS) == 0

    said: list[str] = []
    told = logging.getLogger(app_id)
    told.setLevel(logging.DEBUG)
    told.propagate = False
    told.addHandler(Saying(said))

    def talkative(kafka: str, client_id: str, settings: dict[str, Any]) -> dict[str, Any]:
        wanted = client_settings(kafka, client_id, settings)
        return wanted | {"debug": "fetch", "logger": told}

    monkeypatch.setattr(restore, "client_settings", talkative)
    monkeypatch.setattr(restore, "FETCH_RECORDS_MAX", records_max)
    assert sum(len(batch) for batch in read_compacted(kafka, topic, 0)) == rows
    assert said
    assert any("queued.min.messages exceeded" in line for line in said) == sleeps


class Saying(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())


def test_a_record_is_handed_on_when_it_comes(app_id: str, kafka: str) -> None:
    topic, far_off = f"{app_id}.completed", DEADLINE_SECONDS
    producer = Producer({"bootstrap.servers": kafka})
    producer.produce(topic, b"v", partition=0)
    assert producer.flush(far_off) == 0
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": app_id})
    consumer.assign([TopicPartition(topic, 0, 0)])
    begun = time.monotonic()
    found = take_arrived(consumer, 1_000, far_off)
    assert time.monotonic() - begun < far_off / 2
    assert [message.value() for message in found] == [b"v"]
    consumer.close()


async def test_the_batch_producer_delivers_what_it_confirms(app_id: str, kafka: str) -> None:
    topic = f"{app_id}.completed"
    batch_producer = BatchProducer(kafka, f"{app_id}-batches")
    sent = [
        batch_producer.send_many([(topic, value % PARTITIONS, b"k", str(value).encode(), None)])
        for value in range(1_000)
    ]
    for one in sent:
        await one
    with pytest.raises(PoisonMessage, match=topic):
        await batch_producer.send_many([(topic, 0, b"k", b"x" * (RECORD_BYTES_MAX + 1), None)])
    await batch_producer.close()
    Completed(kafka, app_id).assert_exactly(range(1_000))
