"""Foreign clients against the real engine: each request becomes exactly one job.

Owns the clients' oddities: partitioners, missing keys, wrong partitions, Java, CloudEvents,
repeats at once. The handler writes a line each time that it runs.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
from cloudevents.core.bindings.kafka import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from confluent_kafka import Producer

from tests.chaos.engine import Engine
from tests.chaos.rawlog import read_topic
from tests.chaos.running import PARTITIONS, Ends, Job
from tests.waiting import wait_until
from tidemill.agents.embedded.jars import class_path
from tidemill.agents.embedded.java import find_java

pytestmark = pytest.mark.timeout(240)

TOPIC: Final = "jobs.requested"
JOBS: Final = 60
USERS: Final = 15
JAVA_SECONDS: Final = 90.0  # a JVM starts, produces and ends, on a busy machine
AT_ONCE: Final = 10


def body(user: str, job: str | None, notes: Path, n: int = 0) -> dict[str, Any]:
    """A plain request."""
    request = {"type": "stranger.note", "user_id": user, "payload": {"folder": str(notes), "n": n}}
    return request if job is None else {**request, "job_id": job}


def many(name: str, notes: Path) -> dict[Job, dict[str, Any]]:
    """A batch of requests of several users."""
    jobs = [(f"{name}-user-{n % USERS}", f"{name}-{n}") for n in range(JOBS)]
    return {job: body(*job, notes, n) for n, job in enumerate(jobs)}


def producer(engine: Engine, **settings: Any) -> Producer:
    """A stranger's producer: only the address is given."""
    return Producer({"bootstrap.servers": engine.kafka, **settings})


def ran(notes: Path) -> Counter[Job]:
    """How often each job ran."""
    lines = (notes / "ran.txt").read_text().splitlines()
    return Counter((line.split()[0], line.split()[1]) for line in lines)


def assert_each_ran_once(ends: Ends, jobs: set[Job], notes: Path) -> None:
    ended = ends.wait_for(jobs)
    assert {body["status"] for body in ended.values()} == {"succeeded"}
    assert ran(notes) == dict.fromkeys(jobs, 1)
    assert all(len(ends.of(job)) == 1 for job in jobs)


@pytest.mark.parametrize(
    "partitioner",
    ["consistent_random", "murmur2_random", "fnv1a_random", "random"],
)
def test_partitioners_of_librdkafka(
    engine: Engine, ends: Ends, notes: Path, partitioner: str
) -> None:
    jobs = many(partitioner, notes)
    client = producer(engine, partitioner=partitioner)
    for job, request in jobs.items():
        client.produce(TOPIC, json.dumps(request), key=job[0])
    assert client.flush(30) == 0
    assert_each_ran_once(ends, set(jobs), notes)


def test_default_settings_of_librdkafka(engine: Engine, ends: Ends, notes: Path) -> None:
    jobs = many("default", notes)
    client = producer(engine)
    for job, request in jobs.items():
        client.produce(TOPIC, json.dumps(request), key=job[0])
    assert client.flush(30) == 0
    assert_each_ran_once(ends, set(jobs), notes)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_every_compression(engine: Engine, ends: Ends, notes: Path, codec: str) -> None:
    jobs = many(codec, notes)
    client = producer(engine, **{"compression.codec": codec, "linger.ms": 50})
    for job, request in jobs.items():
        client.produce(TOPIC, json.dumps(request), key=job[0])
    assert client.flush(30) == 0
    assert_each_ran_once(ends, set(jobs), notes)


def test_only_committed_transactions_count(engine: Engine, ends: Ends, notes: Path) -> None:
    client = producer(engine, **{"transactional.id": "a-stranger"})
    client.init_transactions(30)
    kept: set[Job] = set()
    for n in range(20):
        job = (f"txn-{n % 4}", f"txn-{n}")
        client.begin_transaction()
        client.produce(TOPIC, json.dumps(body(*job, notes)), job[0])
        client.flush(30)
        if n % 2:
            client.commit_transaction(30)
            kept.add(job)
        else:
            client.abort_transaction(30)
    assert_each_ran_once(ends, kept, notes)
    known = {event["job_id"] for event in events_of(engine) if event["user_id"].startswith("txn-")}
    assert known == {job_id for _, job_id in kept}


@pytest.mark.parametrize("key", [None, b"", b"somebody else", b"\xff\xfe"])
def test_no_key_and_wrong_keys(
    engine: Engine, ends: Ends, notes: Path, key: bytes | None
) -> None:
    jobs = many(f"key-{key!r}".replace("\\", "").replace(" ", "-"), notes)
    client = producer(engine)
    for request in jobs.values():
        client.produce(TOPIC, json.dumps(request), key=key)
    assert client.flush(30) == 0
    assert_each_ran_once(ends, set(jobs), notes)


def test_every_partition_on_purpose(engine: Engine, ends: Ends, notes: Path) -> None:
    client = producer(engine)
    jobs = set()
    for user in range(USERS):
        for partition in range(PARTITIONS):
            job = (f"lost-{user}", f"lost-{user}-{partition}")
            jobs.add(job)
            client.produce(TOPIC, json.dumps(body(*job, notes)), job[0], partition)
    assert client.flush(30) == 0
    assert_each_ran_once(ends, jobs, notes)


def test_request_without_job_id_is_named_after_its_place(
    engine: Engine, ends: Ends, notes: Path
) -> None:
    client = producer(engine)
    places: list[tuple[int, int]] = []

    def delivered(error: object, message: Any) -> None:
        assert error is None
        places.append((message.partition(), message.offset()))

    for partition in range(PARTITIONS):
        request = json.dumps(body("nameless", None, notes, partition))
        client.produce(TOPIC, request, "nameless", partition, on_delivery=delivered)
    assert client.flush(30) == 0
    answers: dict[tuple[int, int], str] = {}

    def names() -> set[Job]:
        for event in events_of(engine):
            if event["user_id"] == "nameless" and event["event"] == "requested":
                place = (event["cause"]["partition"], event["cause"]["offset"])
                answers[place] = event["job_id"]
        return {("nameless", job_id) for job_id in answers.values()}

    wait_until(lambda: len(names()) == PARTITIONS, 30, "not all are known")
    assert_each_ran_once(ends, names(), notes)
    assert sorted(answers) == sorted(places)
    assert len(set(answers.values())) == PARTITIONS


def console_producer(engine: Engine, lines: list[str], *options: str) -> None:
    """Kafka's own console producer, in Java, from the pinned artifact."""
    done = subprocess.run(
        [
            str(find_java().path), "-Xmx128m", "-cp", class_path(("broker", "tools")),
            "org.apache.kafka.tools.ConsoleProducer", "--bootstrap-server", engine.kafka,
            "--topic", TOPIC, *options,
        ],
        input="\n".join(lines) + "\n", text=True, capture_output=True, timeout=JAVA_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_java_producer_with_keys(engine: Engine, ends: Ends, notes: Path) -> None:
    jobs = many("java-keys", notes)
    console_producer(
        engine,
        [f"{job[0]}|{json.dumps(request)}" for job, request in jobs.items()],
        "--property", "parse.key=true", "--property", "key.separator=|",
    )
    assert_each_ran_once(ends, set(jobs), notes)


def test_java_producer_without_keys(engine: Engine, ends: Ends, notes: Path) -> None:
    jobs = many("java-plain", notes)
    console_producer(engine, [json.dumps(request) for request in jobs.values()])
    assert_each_ran_once(ends, set(jobs), notes)


def cloud_event(user: str, job: str, notes: Path, *, full: bool) -> CloudEvent:
    """The job's name and type are the event's; `full` gives the body both as well."""
    data = body(user, job if full else None, notes)
    if not full:
        del data["type"]
    return CloudEvent(
        {
            "specversion": "1.0", "id": job, "source": "/strangers", "type": "stranger.note",
            "datacontenttype": "application/json",
        },
        data,
    )


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_cloudevents(engine: Engine, ends: Ends, notes: Path, mode: str) -> None:
    client = producer(engine)
    jobs = set()
    for n in range(20):
        job = (f"cloud-{mode}-{n % 5}", f"cloud-{mode}-{n}")
        jobs.add(job)
        event = cloud_event(*job, notes, full=n % 2 == 0)
        message = to_binary_event(event) if mode == "binary" else to_structured_event(event)
        client.produce(
            TOPIC, message.value, job[0], headers=dict(message.headers)
        )
    assert client.flush(30) == 0
    assert_each_ran_once(ends, jobs, notes)


def test_asked_for_twice(engine: Engine, ends: Ends, notes: Path) -> None:
    job = ("twice", "twice-1")
    client = producer(engine)
    for _ in range(2):
        client.produce(TOPIC, json.dumps(body(*job, notes)), job[0])
        assert client.flush(30) == 0
        ends.wait_for({job})
    assert_each_ran_once(ends, {job}, notes)


def test_ten_times_at_once_from_two_producers(engine: Engine, ends: Ends, notes: Path) -> None:
    job = ("eager", "eager-1")
    request = json.dumps(body(*job, notes))
    clients = [producer(engine), producer(engine, partitioner="murmur2_random")]
    together = threading.Barrier(AT_ONCE)

    def ask(n: int) -> None:
        together.wait()
        # Keyed, not keyed, and to each partition: the same job must not be two anywhere.
        if n % 2:
            clients[n % 2].produce(TOPIC, request, job[0])
        else:
            clients[n % 2].produce(TOPIC, request, partition=n // 2 % PARTITIONS)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [client.flush(30) for client in clients] == [0, 0]
    assert_each_ran_once(ends, {job}, notes)
    assert repeats(engine, job) == AT_ONCE - 1
    assert ran(notes) == {job: 1}


def events_of(engine: Engine) -> list[dict[str, Any]]:
    """The whole log so far."""
    return [json.loads(r.value or b"") for r in read_topic(engine.kafka, "jobs.events")]


def repeats(engine: Engine, job: Job) -> int:
    """How many repeats of a job the log has told of."""

    def count() -> int:
        return sum(
            event["event"] == "duplicate_ignored" and (event["user_id"], event["job_id"]) == job
            for event in events_of(engine)
        )

    return wait_until(lambda: (n := count()) >= AT_ONCE - 1 and n, 30, "not all were answered")
