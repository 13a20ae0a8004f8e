"""The client against a real broker; the test plays the ledger.

Owns the proof that requests are where the ledger looks for them, that failures are told, and that
an end is found whenever it was written.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.cimpl import NewPartitions
from pydantic import BaseModel

from tests.waiting import wait_until
from tidemill import (
    AsyncClient,
    Client,
    CompletedJob,
    EnqueueFailed,
    InvalidRequest,
    JobHandle,
    Request,
    WaitTimeout,
    completions,
    sending,
)
from tidemill import client as client_module
from tidemill.agents import exit_codes
from tidemill.agents import topics as topics_
from tidemill.agents.embedded.broker import Broker
from tidemill.agents.topics import PartitionsMismatch, TopicsError
from tidemill.schemas.codec import Decoded, decode_command, decode_request
from tidemill.schemas.instants import instant_text
from tidemill.schemas.requests import Command, SignalCommand
from tidemill.schemas.topics import Topics
from tidemill.streams.partitioner import Partitioner

PARTITIONS = 4
SECONDS = 30.0
NESTED: Any = orjson.loads("[" * 40 + "]" * 40)


@pytest.fixture
def topics(kafka: str, topic_prefix: str) -> Topics:
    found = Topics(topic_prefix)
    topics_.apply(kafka, found, PARTITIONS)
    return found


@pytest.fixture
def client(kafka: str, topics: Topics) -> Iterator[Client]:
    with Client(kafka, topic_prefix=topics.prefix) as one:
        yield one


def records(kafka: str, topic: str, count: int) -> list[Any]:
    """The first `count` records of a topic."""
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": "t", "enable.auto.commit": False,
         "isolation.level": "read_committed"}
    )
    consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    found: list[Any] = []
    deadline = time.monotonic() + SECONDS
    try:
        while len(found) < count and time.monotonic() < deadline:
            found += [one for one in consumer.consume(1_000, timeout=0.2) if one.error() is None]
    finally:
        consumer.close()
    return found


class Ledger:
    """Writes ends, in transactions, to the partition of the user."""

    def __init__(self, kafka: str, topics: Topics) -> None:
        self._kafka = kafka
        self._topics = topics
        self._partitioner = Partitioner(PARTITIONS)
        self._producer = Producer(
            {"bootstrap.servers": kafka, "transactional.id": f"{topics.prefix}-fake-ledger"}
        )
        self._producer.init_transactions(SECONDS)

    def end(
        self, user_id: str, job_id: str, *, run: int = 1, status: str = "succeeded",
        commit: bool | None = True,
    ) -> None:
        now = instant_text(time.time_ns() // 1_000_000)
        body = {
            "job_id": job_id, "user_id": user_id, "type": "t", "queue": "default",
            "status": status, "reason": None, "result": {"run": run}, "error": None,
            "attempts": 1, "requested_at": now, "started_at": now, "finished_at": now,
            "wait_ms": 1, "run_ms": 1, "run": run, "sequence": 4, "schema_version": 1,
        }
        self._producer.begin_transaction()
        self._producer.produce(
            self._topics.completed, orjson.dumps(body), user_id,
            partition=self._partitioner.of(user_id),
        )
        self._producer.flush(SECONDS)
        if commit:
            self.commit()
        elif commit is not None:
            self._producer.abort_transaction(SECONDS)

    def commit(self) -> None:
        """Commit what `end(commit=None)` left open."""
        self._producer.commit_transaction(SECONDS)

    def end_in_sight(self, user_id: str, job_id: str) -> None:
        """`end`, and return once a read_committed reader is told of it."""
        self.end(user_id, job_id)
        here = TopicPartition(self._topics.completed, self._partitioner.of(user_id))
        reader = Consumer(
            {"bootstrap.servers": self._kafka, "group.id": "t",
             "isolation.level": "read_committed"}
        )
        wait_until(
            lambda: reader.get_watermark_offsets(here)[1] or None, SECONDS,
            lambda: "the end is not in sight",
        )
        reader.close()


@pytest.fixture
def ledger(kafka: str, topics: Topics) -> Ledger:
    return Ledger(kafka, topics)


class Greeting(BaseModel):
    name: str


def test_a_request_is_where_the_ledger_looks_for_it(
    kafka: str, client: Client, topics: Topics
) -> None:
    partitioner = Partitioner(PARTITIONS)
    for number in range(20):
        user = f"user-{number}-ü"
        handle = client.enqueue("greet", user_id=user, payload=Greeting(name="Ada"))
        assert handle.topic == topics.requested
        assert handle.partition == partitioner.of(user)
        assert handle.offset is not None
    decoded = [decode_request(one.value(), []) for one in records(kafka, topics.requested, 20)]
    assert all(isinstance(one, Decoded) for one in decoded)
    assert {one.request.payload["name"] for one in decoded if isinstance(one, Decoded)} == {"Ada"}


def test_every_field_arrives(kafka: str, client: Client, topics: Topics) -> None:
    at = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    handle = client.enqueue(
        "t", user_id="u", payload={"a": [1, None]}, job_id="j-1", queue="mail", priority="high",
        run_at=at, expires_at=at, unique_key="k", max_attempts=7, timeout_seconds=1.5,
        source="test", tags=["x", "y"], batch_id="b", parent_job_id="p",
    )
    assert handle.job_id == "j-1"
    decoded = decode_request(records(kafka, topics.requested, 1)[0].value(), [])
    assert isinstance(decoded, Decoded)
    request = decoded.request
    assert (request.run_at, request.expires_at) == (at, at)
    assert (request.queue, request.priority, request.unique_key) == ("mail", "high", "k")
    assert (request.max_attempts, request.timeout_seconds) == (7, 1.5)
    assert (request.source, request.tags) == ("test", ("x", "y"))
    assert (request.batch_id, request.parent_job_id) == ("b", "p")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"type": "no type"}, ("'type'", "no type")),
        ({"user_id": ""}, ("'user_id'",)),
        ({"payload": {"a": 2**70}}, ("'payload.a'", "64-bit")),
        ({"payload": {"a": object()}}, ("'payload.a'", "object")),
        ({"payload": {"a": [float("nan")]}}, ("'payload'", "NaN")),
        ({"payload": {"a": "x" * 1_100_000}}, ("'payload'", "1048576", "reference")),
        ({"payload": {"a": NESTED}}, ("'payload'", "32 deep")),
        ({"run_at": datetime(2030, 1, 1)}, ("'run_at'", "offset")),
        ({"tags": "abc"}, ("'tags'", "list")),
        ({"max_attempts": 0}, ("'max_attempts'",)),
        ({"priority": "urgent"}, ("'priority'", "high")),
    ],
)
def test_what_the_engine_would_refuse_is_refused_here(
    client: Client, given: dict[str, Any], words: tuple[str, ...]
) -> None:
    request = {"type": "t", "user_id": "u", **given}
    with pytest.raises(InvalidRequest) as raised:
        client.enqueue(request.pop("type"), **request)
    for word in words:
        assert word in str(raised.value)


def test_many_are_all_there_once_and_in_order(
    kafka: str, client: Client, topics: Topics
) -> None:
    count = 20_000
    asked = (Request(type="t", user_id=f"u{n % 100}", payload={"n": n}) for n in range(count))
    handles = client.enqueue_many(asked)
    found = records(kafka, topics.requested, count)
    assert len({handle.job_id for handle in handles}) == len(handles) == len(found) == count
    by_user: dict[bytes, list[int]] = {}
    for record in found:
        by_user.setdefault(record.key(), []).append(orjson.loads(record.value())["payload"]["n"])
    assert all(numbers == sorted(numbers) for numbers in by_user.values())
    partitioner = Partitioner(PARTITIONS)
    assert all(one.partition() == partitioner.of(one.key().decode()) for one in found)


def test_a_wrong_one_among_many_is_named_by_its_number(client: Client) -> None:
    asked = [Request(type="t", user_id="u"), Request(type="t", user_id="")]
    with pytest.raises(InvalidRequest, match=r"request 1: field 'user_id'"):
        client.enqueue_many(asked)


def test_large_ones_do_not_pile_up_in_memory(kafka: str, client: Client, topics: Topics) -> None:
    handles = client.enqueue_many(
        Request(type="t", user_id=f"u{n}", payload={"x": "y" * 500_000}) for n in range(300)
    )
    assert len(handles) == 300
    assert len({one.offset() for one in records(kafka, topics.requested, 300)}) > 0


def test_a_broker_that_is_away_is_told_with_the_names_of_the_jobs() -> None:
    with Client("127.0.0.1:1", timeout_seconds=1.0) as client:
        with pytest.raises(EnqueueFailed) as raised:
            client.enqueue("t", user_id="u", job_id="j-1")
        assert raised.value.job_ids == ["j-1"]
        many = [Request(type="t", user_id="u", job_id=f"m-{n}") for n in range(3)]
        with pytest.raises(EnqueueFailed) as raised:
            client.enqueue_many(many)
        assert raised.value.job_ids == ["m-0", "m-1", "m-2"]


def test_a_missing_topic_says_what_to_run(kafka: str, topic_prefix: str) -> None:
    with (
        Client(kafka, topic_prefix=f"{topic_prefix}-none", timeout_seconds=20.0) as client,
        pytest.raises(EnqueueFailed, match="topics apply"),
    ):
        client.enqueue("t", user_id="u")


def test_enqueue_outlives_a_restart_of_the_broker(own_broker: Broker) -> None:
    own_broker.start()
    topics = Topics()
    topics_.apply(own_broker.bootstrap, topics, PARTITIONS)
    with Client(own_broker.bootstrap) as client:
        first = client.enqueue("t", user_id="u")
        own_broker.kill()
        found: list[JobHandle] = []
        asking = threading.Thread(target=lambda: found.append(client.enqueue("t", user_id="u")))
        asking.start()
        own_broker.start()
        asking.join(SECONDS)
    assert found
    assert found[0].offset == (first.offset or 0) + 1


def test_wait_finds_an_end_that_comes_later(client: Client, ledger: Ledger) -> None:
    handle = client.enqueue("t", user_id="u")
    later = threading.Timer(0.5, ledger.end, (handle.user_id, handle.job_id))
    later.start()
    assert client.wait(handle, SECONDS).status == "succeeded"
    later.join()


def test_wait_finds_an_end_that_was_there_before(client: Client, ledger: Ledger) -> None:
    handle = client.enqueue("t", user_id="u")
    ledger.end(handle.user_id, handle.job_id)
    assert client.wait(handle, SECONDS).job_id == handle.job_id
    # Again: from memory now.
    assert client.wait(handle, SECONDS).job_id == handle.job_id


def after_each_answer(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Call `act` with the number of the answer whenever the reader was told an offset."""
    told = count(1)

    class Told(Consumer):
        def get_watermark_offsets(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
            found = super().get_watermark_offsets(*args, **kwargs)
            act(next(told))
            return found

        def offsets_for_times(self, *args: Any, **kwargs: Any) -> list[TopicPartition]:
            found = super().offsets_for_times(*args, **kwargs)
            act(next(told))
            return found

    monkeypatch.setattr(completions, "Consumer", Told)


@pytest.mark.parametrize("number", [1, 2])
def test_an_end_while_the_reader_looks_for_its_start_is_not_jumped_over(
    client: Client, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    handle = client.enqueue("t", user_id="u")

    def end_now(answer: int) -> None:
        if answer == number:
            ledger.end_in_sight(handle.user_id, handle.job_id)

    after_each_answer(monkeypatch, end_now)
    assert client.wait(handle, SECONDS).status == "succeeded"


def test_an_end_in_an_open_transaction_is_not_jumped_over(
    client: Client, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = client.enqueue("t", user_id="u")
    ledger.end(handle.user_id, handle.job_id, commit=None)

    def commit_now(answer: int) -> None:
        if answer == 2:
            ledger.commit()

    after_each_answer(monkeypatch, commit_now)
    assert client.wait(handle, SECONDS).status == "succeeded"


def test_wait_for_one_of_many(client: Client, ledger: Ledger) -> None:
    handles = client.enqueue_many(Request(type="t", user_id=f"u{n}") for n in range(50))
    for handle in handles:
        ledger.end(handle.user_id, handle.job_id)
    for handle in reversed(handles):
        assert client.wait(handle, SECONDS).user_id == handle.user_id


def test_wait_for_one_of_many_after_waits_on_some_partitions(
    client: Client, ledger: Ledger
) -> None:
    # Two users whose partitions differ, each waited for by itself: the reader knows these two.
    alone = [client.enqueue("t", user_id=f"u{n}") for n in range(50)]
    by_partition = {handle.partition: handle for handle in alone}
    assert len(by_partition) > 2
    for handle in list(by_partition.values())[:2]:
        ledger.end(handle.user_id, handle.job_id)
        assert client.wait(handle, SECONDS).user_id == handle.user_id
    # The others' partitions are read as well, where the handle does not say which one.
    elsewhere = list(by_partition.values())[2]
    (handle,) = client.enqueue_many([Request(type="t", user_id=elsewhere.user_id)])
    assert handle.partition is None
    ledger.end(handle.user_id, handle.job_id)
    assert client.wait(handle, SECONDS).user_id == handle.user_id


def test_wait_finds_the_end_when_the_topics_have_got_more_partitions(
    kafka: str, topics: Topics, ledger: Ledger
) -> None:
    admin = topics_.admin_client(kafka)
    grown = {topics.requested: 7, topics.completed: 6}
    for future in admin.create_partitions([NewPartitions(*one) for one in grown.items()]).values():
        future.result(20)

    def have_grown() -> bool:
        found = admin.list_topics(timeout=20).topics
        return all(len(found[name].partitions) == number for name, number in grown.items())

    wait_until(have_grown, SECONDS, "the topics have not grown")
    with Client(kafka, topic_prefix=topics.prefix) as client:
        handles = [client.enqueue("t", user_id=f"u{n}") for n in range(8)]
        assert any((handle.partition or 0) >= PARTITIONS for handle in handles)
        for handle in handles:
            ledger.end(handle.user_id, handle.job_id)
            assert client.wait(handle, SECONDS).user_id == handle.user_id


def test_wait_for_a_later_run_passes_the_first(client: Client, ledger: Ledger) -> None:
    handle = client.enqueue("t", user_id="u")
    ledger.end("u", handle.job_id, run=1, status="failed")
    assert client.wait(handle, SECONDS).run == 1
    ledger.end("u", handle.job_id, run=2)
    assert client.wait(handle, SECONDS, run=2).run == 2


def test_what_has_been_read_is_told_at_once(
    client: Client, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With this pause a look of the reader's would come too late for every wait but the first.
    monkeypatch.setattr(completions, "POLL_SECONDS", 2 * SECONDS)
    handles = [client.enqueue("t", user_id="u") for _ in range(20)]
    for handle in handles:
        ledger.end("u", handle.job_id)
    for handle in reversed(handles):
        assert client.wait(handle, SECONDS).job_id == handle.job_id
    monkeypatch.undo()
    ledger.end("u", "another")  # ends the reader's long look


def test_an_aborted_end_is_none(client: Client, ledger: Ledger) -> None:
    handle = client.enqueue("t", user_id="u")
    ledger.end(handle.user_id, handle.job_id, commit=False)
    with pytest.raises(WaitTimeout, match="jobs show"):
        client.wait(handle, 1.0)


def test_a_process_that_did_not_ask_can_wait(
    kafka: str, topics: Topics, client: Client, ledger: Ledger
) -> None:
    handle = client.enqueue("t", user_id="u")
    ledger.end(handle.user_id, handle.job_id)
    with Client(kafka, topic_prefix=topics.prefix) as other:
        assert other.wait(handle, SECONDS).status == "succeeded"


def test_commands_arrive_at_the_partition_of_the_user(
    kafka: str, client: Client, topics: Topics
) -> None:
    cancelled = client.cancel("u", "j", reason="not needed", actor="me")
    client.redrive("u", "j")
    assert cancelled.partition == Partitioner(PARTITIONS).of("u")
    found = [decode_command(one.value()) for one in records(kafka, topics.commands, 2)]
    assert [one.command for one in found if isinstance(one, Command)] == ["cancel", "redrive"]
    assert isinstance(found[0], Command)
    assert (found[0].reason, found[0].actor) == ("not needed", "me")


def test_signals_travel_as_they_are_read(kafka: str, client: Client, topics: Topics) -> None:
    class Approval(BaseModel):
        by: str

    client.signal(user_id="u", job_id="j", name="go", value=Approval(by="ada"), actor="ada")
    client.signal("u", "j", "go", [1, None])
    handle = client.enqueue("t", user_id="u", job_id="k")
    assert handle.signal_sync("go", {"ok": True}).command == "signal"
    found = [decode_command(one.value()) for one in records(kafka, topics.commands, 3)]
    signals = [one for one in found if isinstance(one, SignalCommand)]
    assert [one.value for one in signals] == [{"by": "ada"}, [1, None], {"ok": True}]
    assert [(one.job_id, one.actor) for one in signals] == [("j", "ada"), ("j", None), ("k", None)]
    for wrong, field in (("", "name"), ("n" * 129, "name")):
        with pytest.raises(InvalidRequest, match=f"'{field}'"):
            client.signal("u", "j", wrong)
    for value in ("x" * 65_535, object(), float("nan"), {1, 2}):
        with pytest.raises(InvalidRequest, match="'value"):
            client.signal("u", "j", "go", value)


async def test_the_async_client_does_the_same(
    kafka: str, topics: Topics, ledger: Ledger
) -> None:
    async with AsyncClient(kafka, topic_prefix=topics.prefix) as client:
        handles = await asyncio.gather(
            *(client.enqueue("t", user_id=f"u{n}") for n in range(200))
        )
        handles += await client.enqueue_many([Request(type="t", user_id="many")])
        for handle in handles:
            await asyncio.to_thread(ledger.end, handle.user_id, handle.job_id)
        ends: list[CompletedJob] = await asyncio.gather(
            *(client.wait(handle, SECONDS) for handle in handles)
        )
        assert [end.job_id for end in ends] == [handle.job_id for handle in handles]
        with pytest.raises(WaitTimeout):
            await client.wait(JobHandle("none", "u", "t", "x", 0), 0.2)
        assert (await client.cancel("u", "j")).command == "cancel"
        assert (await client.redrive("u", "j")).command == "redrive"
        assert (await client.signal("u", "j", "go")).command == "signal"
        assert (await handles[0].signal("go", 1)).job_id == handles[0].job_id


def test_a_closed_client_says_so(kafka: str, topics: Topics) -> None:
    client = Client(kafka, topic_prefix=topics.prefix)
    client.enqueue("t", user_id="u")
    client.close()
    with pytest.raises(Exception, match="closed"):
        client.enqueue("t", user_id="u")


def test_topics_are_planned_applied_and_held(kafka: str, topic_prefix: str) -> None:
    topics = Topics(topic_prefix)
    planned = topics_.plan(kafka, topics, PARTITIONS, ["mail"])
    assert {one.action for one in planned} == {"create"}
    assert len(topics_.apply(kafka, topics, PARTITIONS, ["mail"])) == len(planned)
    assert topics_.plan(kafka, topics, PARTITIONS, ["mail"]) == []
    assert topics_.apply(kafka, topics, PARTITIONS, ["mail"]) == []
    assert topics_.found_partitions(kafka, topics) == PARTITIONS
    with pytest.raises(PartitionsMismatch, match=r"--partitions 8 .* 4 partitions"):
        topics_.apply(kafka, topics, 8)
    with pytest.raises(PartitionsMismatch):
        topics_.check_partitions(kafka, topics, 8)
    assert topics_.ensure_ready_topics(kafka, topics, ["mail", "slow"]) == [topics.ready("slow")]


def test_no_broker_is_told_with_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tidemill", "topics", "plan", "--kafka", "127.0.0.1:1"],
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert done.returncode == 3
    assert "--kafka" in done.stderr
    monkeypatch.setattr(topics_, "ADMIN_SECONDS", 0.5)
    with pytest.raises(TopicsError, match="--kafka"):
        topics_.plan("127.0.0.1:1", Topics(), PARTITIONS)


async def test_a_full_queue_is_waited_for(
    kafka: str, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = sending._producer
    refusals = 0

    class Narrow(sending.Sender):
        def try_send(self, *args: Any) -> bool:
            nonlocal refusals
            is_sent = super().try_send(*args)
            refusals += not is_sent
            return is_sent

    monkeypatch.setattr(
        sending, "_producer",
        lambda where, seconds, settings: make(
            where, seconds, {**settings, "queue.buffering.max.messages": 1}
        ),
    )
    monkeypatch.setattr(client_module, "Sender", Narrow)
    async with AsyncClient(kafka, topic_prefix=topics.prefix) as client, asyncio.timeout(SECONDS):
        handles = await asyncio.gather(*(client.enqueue("t", user_id=f"u{n}") for n in range(20)))
    assert refusals
    assert len({(handle.partition, handle.offset) for handle in handles}) == 20


async def test_those_who_ask_at_about_the_same_time_are_each_answered_and_in_order(
    kafka: str, topics: Topics
) -> None:
    """Most of these travel in bursts; the first ones, and those after a pause, do not."""
    jobs, users = 1_500, 7
    async with AsyncClient(kafka, topic_prefix=topics.prefix) as client:
        sent: list[asyncio.Task[JobHandle]] = []
        for number in range(jobs):
            if number % 300 < 5:
                await asyncio.sleep(0.02)
            elif number % 10 == 0:
                await asyncio.sleep(0.002)
            sent.append(
                asyncio.create_task(
                    client.enqueue("t", user_id=f"u{number % users}", payload={"n": number})
                )
            )
        handles = await asyncio.gather(*sent)
    found = records(kafka, topics.requested, jobs)
    at = {
        (one.partition(), one.offset()): orjson.loads(one.value())["payload"]["n"] for one in found
    }
    assert [at[handle.partition, handle.offset] for handle in handles] == list(range(jobs))
    by_user: dict[bytes, list[int]] = {}
    for one in sorted(found, key=lambda one: (one.partition(), one.offset())):
        by_user.setdefault(one.key(), []).append(orjson.loads(one.value())["payload"]["n"])
    assert all(numbers == sorted(numbers) for numbers in by_user.values())


def test_the_doctor_outlives_a_broker_without_any_group(own_broker: Broker) -> None:
    own_broker.start()
    asked = subprocess.run(
        [sys.executable, "-m", "tidemill", "doctor", "--json", "--kafka", own_broker.bootstrap,
         "--clickhouse", "http://127.0.0.1:1"],
        capture_output=True, text=True, timeout=120, check=False,
    )
    assert asked.returncode == exit_codes.CHECK_FAILED, asked.stderr
    verdicts = {row["check"]: row["verdict"] for row in orjson.loads(asked.stdout)}
    assert verdicts["ledger"] in ("failed", "unknown")


async def test_bursts_outlive_a_restart_of_the_broker(own_broker: Broker) -> None:
    own_broker.start()
    topics_.apply(own_broker.bootstrap, Topics(), PARTITIONS)
    jobs = 400
    async with AsyncClient(own_broker.bootstrap) as client:

        async def ask(numbers: range) -> list[JobHandle]:
            return await asyncio.gather(
                *(client.enqueue("t", user_id="u", payload={"n": number}) for number in numbers)
            )

        await ask(range(50))
        own_broker.kill()
        asking = asyncio.create_task(ask(range(50, jobs)))
        await asyncio.to_thread(own_broker.start)
        async with asyncio.timeout(SECONDS):
            await asking
    found = records(own_broker.bootstrap, Topics().requested, jobs)
    assert [orjson.loads(one.value())["payload"]["n"] for one in found] == list(range(jobs))


async def test_a_broker_that_is_away_is_told_to_each_of_a_burst() -> None:
    async with AsyncClient("127.0.0.1:1", timeout_seconds=1.0) as client:
        found = await asyncio.gather(
            *(client.enqueue("t", user_id="u", job_id=f"j-{n}") for n in range(30)),
            return_exceptions=True,
        )
    assert all(isinstance(one, EnqueueFailed) for one in found)
    assert [one.job_ids for one in found if isinstance(one, EnqueueFailed)] == [
        [f"j-{n}"] for n in range(30)
    ]
