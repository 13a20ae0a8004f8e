"""Copies of a process that has clients: each is safe to use, and none waits without a bound.

Each case runs in a process of its own, which forks while its client has threads and connections.
Without a broker, what the copy does must end by the client's own bound, and the copy must end. With
one, whatever parent and copies send is in the topic, each once, and each call ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.integration.forking import COPY
from tidemill.agents import topics as topics_
from tidemill.schemas.topics import Topics

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0  # far above what any case takes; a hang fails here

HEAD = """
import asyncio, os, sys, threading, time
from tidemill.client import AsyncClient, Client, JobHandle, Request
from tidemill.requests import ClientError, JobIds

def handle(number):
    return JobHandle(str(number), "u", "t", "jobs.requested", 1)

client = Client("127.0.0.1:1", timeout_seconds=0.3)
asynchronous = AsyncClient("127.0.0.1:1", timeout_seconds=0.3)

def fails(call):
    try:
        call()
    except (ClientError, TimeoutError):
        return
    raise AssertionError("it did not fail")

def use(client):
    fails(lambda: client.enqueue("t", user_id="u"))
    fails(lambda: client.enqueue_many([Request(type="t", user_id="u")]))
    fails(lambda: client.wait(handle(1), timeout=0.1))
    fails(lambda: client.cancel("u", "j"))
    client.close()

async def use_async(client):
    for call in (
        client.enqueue("t", user_id="u"), client.wait(handle(1), timeout=0.1),
        client.enqueue_many([Request(type="t", user_id="u")]),
    ):
        try:
            await call
        except (ClientError, TimeoutError):
            continue
        raise AssertionError("it did not fail")
    await client.close()

def begin(call):
    thread = threading.Thread(target=lambda: fails(call), daemon=True)
    thread.start()
    return thread

def in_copy(call):
    join(copy(call))
"""

CASES = {
    "unused": "in_copy(lambda: use(client)); use(client)",
    "used": "use2 = fails(lambda: client.enqueue('t', user_id='u')); "
            "in_copy(lambda: use(client)); use(client)",
    "in use": "threads = [begin(lambda: client.enqueue('t', user_id='u')), "
              "begin(lambda: client.wait(handle(2), timeout=1)), "
              "begin(lambda: client.enqueue_many([Request(type='t', user_id='u')]))]\n"
              "while client._core._sender._single is None or client._core._sender._bulk is None "
              "or client._core._completions._thread is None: time.sleep(0.01)\n"
              "in_copy(lambda: use(client))\n"
              "[thread.join() for thread in threads]; use(client)",
    "while a lock is held": "locks = (client._core._sender._lock, client._core._ids._lock, "
                            "client._core._sender._bulk_lock, client._core._completions._lock)\n"
                            "[lock.acquire() for lock in locks]\n"
                            "in_copy(lambda: use(client))",
    "not touched in the copy": "fails(lambda: client.enqueue('t', user_id='u')); "
                               "in_copy(lambda: None); use(client)",
    "copy of a copy": "fails(lambda: client.enqueue('t', user_id='u')); "
                      "in_copy(lambda: (fails(lambda: client.enqueue('t', user_id='u')), "
                      "in_copy(lambda: use(client))))",
    "closed": "client.close(); in_copy(lambda: fails(lambda: client.enqueue('t', user_id='u')))",
    "asynchronous":
                    "in_copy(lambda: asyncio.run(use_async(asynchronous)))\n"
                    "asyncio.run(use_async(asynchronous))",
    "ids": "ids = JobIds(); ids.next()\n"
           "read, write = os.pipe()\n"
           "in_copy(lambda: os.write(write, '\\n'.join(ids.next() for _ in range(500)).encode()))\n"
           "mine = {ids.next() for _ in range(500)}\n"
           "theirs = set(os.read(read, 1 << 16).decode().split())\n"
           "assert len(theirs) == 500 and not mine & theirs",
}


@pytest.fixture(scope="module")
def started() -> dict[str, subprocess.Popen[str]]:
    """All at once: they mostly wait."""
    return {
        name: subprocess.Popen(
            [sys.executable, "-c", COPY + HEAD + case], cwd=ROOT, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env={**os.environ, "TIDEMILL_NATIVE": "0"},
        )
        for name, case in CASES.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_a_copy_of_a_client_is_safe_to_use(
    name: str, started: dict[str, subprocess.Popen[str]]
) -> None:
    process = started[name]
    try:
        told, _ = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, told[-3_000:]


LIVE_HEAD = """
import asyncio, itertools, multiprocessing, os, sys, threading
from tidemill.client import AsyncClient, Client, Request

KAFKA, PREFIX, SENT = sys.argv[1:]
client = Client(KAFKA, topic_prefix=PREFIX, timeout_seconds=30)

def note(*ids):
    # One write each: copies share the file.
    with open(SENT, "a") as file:
        file.write("".join(f"{each}\\n" for each in ids))

def use(client, many=50):
    note(client.enqueue("t", user_id="u").job_id)
    requests = [Request(type="t", user_id=f"u{n % 7}") for n in range(many)]
    note(*(each.job_id for each in client.enqueue_many(requests)))
    note(client.enqueue("t", user_id="u").job_id)
"""

LIVE_CASES = {
    "used before, four at once":
        "use(client); join(*[copy(lambda: use(client)) for _ in range(4)]); use(client)",
    "sends in flight":
        "stop, begun = threading.Event(), threading.Barrier(4)\n"
        "def run():\n"
        "    begun.wait()\n"
        "    while not stop.is_set(): note(client.enqueue('t', user_id='u').job_id)\n"
        "threads = [threading.Thread(target=run) for _ in range(3)]\n"
        "[each.start() for each in threads]; begun.wait()\n"
        "join(*[copy(lambda: use(client)) for _ in range(3)])\n"
        "stop.set(); [each.join() for each in threads]; use(client)",
    "many in flight":
        "thread = threading.Thread(target=lambda: use(client, 20_000)); thread.start()\n"
        "while client._core._sender._bulk is None: pass\n"
        "join(copy(lambda: use(client)), copy(lambda: use(client))); thread.join()",
    "closed in one of them":
        "use(client); join(copy(lambda: client.close())); use(client)\n"
        "read, write = os.pipe()\n"
        "pid = copy(lambda: (os.read(read, 1), use(client)))\n"
        "client.close(); os.write(write, b'x'); join(pid)",
    "a pool of processes":
        "use(client)\n"
        "def one(n):\n"
        "    note(client.enqueue('t', user_id=f'u{n}').job_id)\n"
        "with multiprocessing.get_context('fork').Pool(3) as pool: pool.map(one, range(30))\n"
        "use(client)",
    "asynchronous":
        "other = AsyncClient(KAFKA, topic_prefix=PREFIX, timeout_seconds=30)\n"
        "async def send(): note((await other.enqueue('t', user_id='u')).job_id)\n"
        "asyncio.run(send()); join(copy(lambda: asyncio.run(send()))); asyncio.run(send())",
}


def job_ids_of(kafka: str, topics: Topics) -> list[str]:
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "forks"})
    found = []
    for partition in range(PARTITIONS):
        place = TopicPartition(topics.requested, partition, 0)
        _, end = consumer.get_watermark_offsets(place, timeout=SECONDS)
        consumer.assign([place])
        while end and consumer.position([place])[0].offset < end:
            for message in consumer.consume(10_000, timeout=1):
                found.append(str(json.loads(message.value() or b"")["job_id"]))
    consumer.close()
    return found


PARTITIONS = 2


@pytest.mark.parametrize("name", LIVE_CASES)
def test_what_copies_of_a_client_send_is_there_once(
    name: str, kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    topics, sent = Topics(topic_prefix), tmp_path / "sent"
    topics_.apply(kafka, topics, PARTITIONS)
    done = subprocess.run(
        [sys.executable, "-c", COPY + LIVE_HEAD + LIVE_CASES[name], kafka, topic_prefix, str(sent)],
        cwd=ROOT, text=True, capture_output=True, timeout=SECONDS, check=False,
        env={**os.environ, "TIDEMILL_NATIVE": "0"},
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    told = sent.read_text().split()
    assert len(told) == len(set(told)) >= 3
    assert sorted(job_ids_of(kafka, topics)) == sorted(told)
