"""Bad input through the real engine: neighbours go on, nothing is lost, all is accounted for.

Owns what is sent and what must be found afterwards, on `jobs.dead` byte for byte. The last test
writes rubbish into the engine's own topics.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Final

import orjson
import pytest
from confluent_kafka import Producer

from tests.badinput.mutants import Headers, mutant, random_bytes
from tests.badinput.test_codec import CASES
from tests.chaos.checker import check_installation
from tests.chaos.engine import Engine
from tests.chaos.history import ask
from tests.chaos.legal import TERMINAL
from tests.chaos.rawlog import RawRecord, read_topic, record_count
from tests.chaos.receipts import Receipt
from tests.chaos.running import PARTITIONS, Ends, Tail, running_engine
from tests.waiting import wait_until
from tidemill.schemas.words import ErrorCode

pytestmark = pytest.mark.timeout(400)

TOPIC: Final = "jobs.requested"
RANDOM_RECORDS: Final = 100_000
BENT_RECORDS: Final = 100_000
BULK_SECONDS: Final = 240.0  # to decide all of them on two busy cores
UNKNOWN_TYPE_SECONDS: Final = 60.0  # they wait 30 s for a worker that knows them
PREFIX: Final = "tidemill.dead."
UNKNOWN: Final = {"type": "nobody.has", "user_id": "u", "job_id": "unknown"}
HEADERS: Final[Headers] = [("x-request", b"\x00\xff"), ("empty", b""), ("none", None)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Everything, ClickHouse too."""
    folder = tmp_path_factory.mktemp("badinput")
    with running_engine(folder, ["tests/badinput/handlers.py"], with_history=True) as running:
        # It waits 30 s for a worker that knows it: time for the tests before the one that looks.
        client = producer(running)
        client.produce(TOPIC, json.dumps(UNKNOWN), UNKNOWN["user_id"])
        assert client.flush(30) == 0
        yield running


@pytest.fixture(scope="module")
def ends(engine: Engine) -> Iterator[Ends]:
    tail = Ends(engine.kafka)
    tail.start()
    yield tail
    tail.close()


@pytest.fixture(scope="module")
def dead(engine: Engine) -> Iterator[Tail]:
    tail = Tail(engine.kafka, "jobs.dead")
    tail.start()
    yield tail
    tail.close()


def producer(engine: Engine) -> Producer:
    return Producer(
        {
            "bootstrap.servers": engine.kafka, "message.max.bytes": 4_000_000,
            "linger.ms": 20, "queue.buffering.max.messages": 300_000,
        }
    )


def texts(record: RawRecord) -> dict[str, str]:
    """The dead letter's own headers, which are all text; of several by one name the last counts."""
    return {
        name.removeprefix(PREFIX): value.decode("utf-8", "replace")
        for name, value in record.headers
        if name.startswith(PREFIX) and value is not None
    }


def letter_of(
    dead: Tail, topic: str, partition: int | None, offset: int | None
) -> RawRecord:
    """The dead letter of one record."""

    def found() -> RawRecord | None:
        for record in dead.records:
            head = texts(record)
            if (head["topic"], head["partition"], head["offset"]) == (
                topic, str(partition), str(offset)
            ):
                return record
        return None

    letter = wait_until(found, 60, f"{topic}[{partition}]{offset} is not on jobs.dead")
    assert letter is not None
    return letter


def good(user: str, job: str) -> bytes:
    return json.dumps({"type": "fuzz.ok", "user_id": user, "job_id": job}).encode()


@pytest.mark.parametrize(
    ("name", "value", "code", "is_known"), CASES, ids=[case[0] for case in CASES]
)
def test_neighbours_go_on_and_the_record_is_kept(
    engine: Engine, ends: Ends, dead: Tail, name: str, value: bytes | None, code: ErrorCode,
    is_known: bool,
) -> None:
    user = f"neighbour-{name.replace(' ', '-')}"
    mine = None if value is None else value.replace(b'"j"', json.dumps(name).encode())
    places: list[tuple[int, int]] = []

    def delivered(error: object, message: Any) -> None:
        assert error is None, error
        places.append((message.partition(), message.offset()))

    client = producer(engine)
    # All three in one partition, one after the other.
    client.produce(TOPIC, good(user, "before"), user, 1, on_delivery=delivered)
    client.produce(TOPIC, mine, b"k\xff", 1, on_delivery=delivered, headers=list(HEADERS))
    client.produce(TOPIC, good(user, "after"), user, 1, on_delivery=delivered)
    assert client.flush(30) == 0
    ended = ends.wait_for({(user, "before"), (user, "after")})
    assert {body["status"] for body in ended.values()} == {"succeeded"}
    letter = letter_of(dead, TOPIC, *places[1])
    assert (letter.value, letter.key) == (mine, b"k\xff")
    assert list(letter.headers[: len(HEADERS)]) == HEADERS
    head = texts(letter)
    assert (head["stage"], head["error.code"]) == ("request", code.value)
    assert head["error.message"]
    assert int(head["timestamp"]) > 0
    if is_known:
        body = ends.wait_for({("u", name)})[("u", name)]
        assert (body["status"], body["error"]["code"]) == ("failed", code.value)
        assert (head["user_id"], head["job_id"]) == ("u", name)


def test_header_whose_name_is_no_text(engine: Engine, ends: Ends, dead: Tail) -> None:
    offsets = []
    for value in (good("odd", "odd-1"), b"{", good("odd", "odd-2")):
        script = Path(__file__).with_name("odd_producer.py")
        done = subprocess.run(
            [sys.executable, str(script), engine.kafka, TOPIC, "3", value.decode()],
            capture_output=True, text=True, timeout=60,
        )
        assert done.returncode == 0, done.stderr
        offsets.append(int(done.stdout))
    ended = ends.wait_for({("odd", "odd-1"), ("odd", "odd-2")})
    assert {body["status"] for body in ended.values()} == {"succeeded"}
    letter = letter_of(dead, TOPIC, 3, offsets[1])
    assert letter.value == b"{"
    # The name cannot be written again as it was; its value and the other headers can.
    assert [value for _, value in letter.headers[:2]] == [b"v", b"w"]
    assert letter.headers[1] == ("even", b"w")


def test_unknown_type_fails_in_time(engine: Engine, ends: Ends) -> None:
    body = ends.wait_for({("u", "unknown")}, UNKNOWN_TYPE_SECONDS)[("u", "unknown")]
    assert (body["status"], body["error"]["code"]) == ("failed", "UNKNOWN_TYPE")
    assert "nobody.has" in body["error"]["message"]


def test_payload_that_its_model_refuses(engine: Engine, ends: Ends) -> None:
    client = producer(engine)
    value = json.dumps(
        {"type": "fuzz.strict", "user_id": "u", "job_id": "strict", "payload": {"n": "x"}}
    )
    client.produce(TOPIC, value, "u")
    assert client.flush(30) == 0
    body = ends.wait_for({("u", "strict")})[("u", "strict")]
    assert (body["status"], body["error"]["code"]) == ("failed", "INVALID_PAYLOAD")
    assert (body["attempts"], body["error"]["retryable"]) == (1, False)


def test_each_of_many_bad_records_is_accounted_for(engine: Engine, ends: Ends) -> None:
    receipts: list[Receipt] = []

    def delivered(error: object, message: Any) -> None:
        assert error is None, error
        receipts.append(Receipt(message.partition(), message.offset(), "either"))

    client = producer(engine)
    for number in range(RANDOM_RECORDS + BENT_RECORDS):
        random = Random(number)
        value: bytes | None
        headers: Headers
        if number % 2:
            value, headers = random_bytes(random), []
        else:
            value, headers = mutant(random)
        sent: list[tuple[str, str | bytes | None]] = [*headers]
        client.produce(
            TOPIC, value, partition=number % PARTITIONS, headers=sent, on_delivery=delivered
        )
        if number % 1_000 == 0:
            client.poll(0)
    assert client.flush(60) == 0
    assert len(receipts) == RANDOM_RECORDS + BENT_RECORDS
    wait_until_decided(engine)
    wait_until_ended(engine)
    # Unclean keys of repeats and the like are all in there: the whole log must be right.
    report = check_installation(engine.kafka, receipts=receipts, is_over=False)
    print(report.text())
    assert report.is_clean, report.text()
    assert report.checked["receipts"] == RANDOM_RECORDS + BENT_RECORDS


def wait_until_decided(engine: Engine) -> None:
    """Until the applied positions have reached the end of jobs.requested."""
    sent = dict.fromkeys(range(PARTITIONS), -1)
    for record in read_topic(engine.kafka, TOPIC):
        sent[record.partition] = max(sent[record.partition], record.offset)

    applied = dict.fromkeys(sent, -1)
    with following(engine, "tidemill-state") as news:

        def is_applied() -> bool:
            for record in news():
                if record.key == b"p" and record.value is not None:
                    row = orjson.loads(record.value)
                    applied[record.partition] = row["applied"].get(TOPIC, -1)
            return all(applied[n] >= sent[n] for n in sent)

        wait_until(is_applied, BULK_SECONDS, "the ledger has not decided all records")


@contextmanager
def following(engine: Engine, topic: str) -> Iterator[Callable[[], list[RawRecord]]]:
    """A function that gives what has come to the topic since it was last asked."""
    tail = Tail(engine.kafka, topic)
    tail.start()
    seen = 0

    def news() -> list[RawRecord]:
        nonlocal seen
        new = tail.records[seen:]
        seen += len(new)
        return new

    try:
        yield news
    finally:
        tail.close()


def wait_until_ended(engine: Engine) -> None:
    """Until no job is left that a worker could run.

    A queue that nobody serves keeps its jobs, and a bent bit makes 2226 of 2026.
    """
    far = datetime.now(UTC) + timedelta(hours=1)

    def waits_rightly(event: dict[str, Any]) -> bool:
        due_at = event["due_at"]
        return event["queue"] not in ("", "default") or (
            due_at is not None and datetime.fromisoformat(due_at) > far
        )

    alive: set[tuple[str, str]] = set()
    unread = sum(1 for _ in read_topic(engine.kafka, "jobs.events"))
    with following(engine, "jobs.events") as news:

        def is_over() -> bool:
            nonlocal unread
            for record in news():
                unread -= 1
                event = orjson.loads(record.value or b"")
                job = (event["user_id"], event["job_id"])
                if event["sequence"] is None:
                    continue
                if event["state_after"] in TERMINAL or waits_rightly(event):
                    alive.discard(job)
                else:
                    alive.add(job)
            return unread <= 0 and not alive

        wait_until(is_over, UNKNOWN_TYPE_SECONDS + 60, lambda: f"alive: {sorted(alive)[:5]}")


EVENTS_OF_A_QUICK_JOB: Final = 4  # requested, dispatched, attempt_succeeded, succeeded
RUBBISH: Final = (
    None, b"", b"\xff", b"{}", b"[]", b"7", b"[" * 10_000,
    b'{"schema_version":99}', b'{"schema_version":1}',
    b'{"schema_version":1,"worker_id":1,"incarnation":"x","outcomes":{}}',
    b'{"schema_version":1,"worker_id":"w","incarnation":1,"outcomes":[1,{"kind":"no"}]}',
    b'{"schema_version":1,"worker_id":"w","incarnation":1,"outcomes":[{"kind":"succeeded",'
    b'"user_id":"nobody","job_id":"nothing","run":1,"attempt":1,"epoch":1}]}',
)


@pytest.mark.parametrize(
    ("topic", "code"),
    [
        ("jobs.outcomes", ErrorCode.UNDECODABLE), ("jobs.commands", ErrorCode.UNDECODABLE),
        ("jobs.internal", ErrorCode.BROKEN_FORWARD),
    ],
)
def test_rubbish_in_the_inputs_of_the_ledger(
    engine: Engine, ends: Ends, dead: Tail, topic: str, code: ErrorCode
) -> None:
    client = producer(engine)
    places: list[tuple[int | None, int | None]] = []
    for value in RUBBISH:
        client.produce(
            topic, value, b"k", 2,
            on_delivery=lambda _error, m: places.append((m.partition(), m.offset())),
        )
    client.produce(TOPIC, good("after", topic), "after", 2)
    assert client.flush(30) == 0
    ends.wait_for({("after", topic)})
    letter = letter_of(dead, topic, *places[2])
    assert (letter.value, letter.key) == (b"\xff", b"k")
    assert texts(letter)["error.code"] == code


@pytest.mark.parametrize(
    "topic", ["jobs.heartbeats", "jobs.definitions", "jobs.control", "jobs.ready.default"]
)
def test_rubbish_between_ledger_and_worker(engine: Engine, ends: Ends, topic: str) -> None:
    client = producer(engine)
    for value in RUBBISH:
        client.produce(topic, value, b"k", 0)
    assert client.flush(30) == 0
    for n in range(20):
        client.produce(TOPIC, good(f"after-{n}", topic), f"after-{n}")
    assert client.flush(30) == 0
    ends.wait_for({(f"after-{n}", topic) for n in range(20)})


def test_events_of_an_unknown_version(engine: Engine, ends: Ends, dead: Tail) -> None:
    client = producer(engine)
    places: list[tuple[int | None, int | None]] = []
    for value in RUBBISH:
        client.produce(
            "jobs.events", value, b"k", 3,
            on_delivery=lambda _error, m: places.append((m.partition(), m.offset())),
        )
    assert client.flush(30) == 0
    client.produce(TOPIC, good("later", "later"), "later")
    assert client.flush(30) == 0
    ends.wait_for({("later", "later")})
    version = RUBBISH.index(b'{"schema_version":99}')
    letter = letter_of(dead, "jobs.events", *places[version])
    assert (letter.value, letter.key) == (RUBBISH[version], b"k")
    assert texts(letter)["error.code"] == ErrorCode.UNKNOWN_VERSION
    address = engine.clickhouse
    assert address is not None
    sql = "SELECT count() FROM job_events WHERE user_id = 'later'"
    wait_until(
        lambda: int(ask(address, sql)[0][0]) == EVENTS_OF_A_QUICK_JOB, 60,
        "the sink stopped at a record that it cannot read",
    )


def test_nobody_died(engine: Engine) -> None:
    assert engine.deaths == []
    assert record_count(engine.kafka, TOPIC) >= RANDOM_RECORDS + BENT_RECORDS
