"""Jobs that end their worker, of every kind of handler, among neighbours: `tidemill dev` as it is.

Owns the proof that such a job begins a bounded number of times, that its neighbours end soon, and
that its story says how each worker ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_dev import Dev
from tests.waiting import wait_until
from tidemill import Client, Request
from tidemill.agents.embedded.ports import free_port
from tidemill.sql import query_rows

NEIGHBOURS = 10
NEIGHBOUR_SECONDS = 15.0
SECONDS = 90.0
ATTEMPTS = 2
INNOCENTS = 12
INNOCENT_SECONDS = 4
KILLERS = 3
# One begins unmarked; after that each start is known, and the fourth one is apart.
STARTS_MAX = 4
JOBS = '''
import asyncio
import ctypes
import os
import pathlib
import signal
import time
from tidemill import job

def die(how):
    if how == "exit":
        os._exit(13)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "abort":
        os.abort()
    if how == "late":
        time.sleep(1.5)
        os._exit(13)
    raise Unwordable

class Unwordable(Exception):
    def __str__(self):
        raise SystemExit("no words")
    __repr__ = __str__

def begin(payload):
    with pathlib.Path(payload["file"]).open("a") as file:
        file.write(f"{time.time()}\\n")
    die(payload["how"])

@job("async", max_attempts=2)
async def in_loop(payload: dict) -> None:
    begin(payload)

@job("thread", max_attempts=2)
def in_thread(payload: dict) -> None:
    begin(payload)

@job("process", process=True, max_attempts=2)
def in_process(payload: dict) -> None:
    begin(payload)

@job("later")
async def later(payload: dict) -> None:
    await asyncio.sleep(payload["seconds"])
    os._exit(13)

@job("innocent")
async def innocent(payload: dict) -> str:
    await asyncio.sleep(payload["seconds"])
    return "done"

@job("innocent-thread")
def innocent_thread(payload: dict) -> str:
    time.sleep(payload["seconds"])
    return "done"

@job("good")
async def good(payload: dict) -> str:
    return "done"

@job("good-thread")
def good_thread(payload: dict) -> str:
    time.sleep(0.1)
    return "done"
'''
WAYS = [
    ("async", "exit", "WORKER_LOST", "exit code 13"),
    ("thread", "segfault", "WORKER_LOST", "SIGSEGV (signal 11)"),
    ("thread", "late", "WORKER_LOST", "exit code 13"),
    ("async", "kill", "WORKER_LOST", "SIGKILL (signal 9)"),
    ("process", "abort", "PROCESS_DIED", "SIGABRT"),
    ("async", "unwordable", "HANDLER_ERROR", "Unwordable"),
    ("thread", "unwordable", "HANDLER_ERROR", "Unwordable"),
    ("process", "unwordable", "HANDLER_ERROR", "Unwordable"),
]

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Dev, str, str]]:
    folder = tmp_path_factory.mktemp("killers")
    (folder / "killer_jobs.py").write_text(JOBS)
    ports = [str(free_port()) for _ in range(3)]
    dev = Dev(
        folder, "killer_jobs.py", "--kafka-port", ports[0], "--clickhouse-port", ports[1],
        "--http-port", ports[2],
    )
    kafka, clickhouse, _ = dev.wait_ready()
    yield dev, kafka, clickhouse
    dev.stop()
    dev.close()


def story_of(clickhouse: str, job_id: str) -> list[dict[str, Any]]:
    return query_rows(
        clickhouse,
        "SELECT * FROM job_events WHERE job_id = {job:String} ORDER BY sequence",
        {"job": job_id},
    )


@pytest.mark.parametrize(("kind", "how", "code", "cause"), WAYS)
def test_a_job_that_ends_its_worker_is_bounded_and_its_neighbours_end(
    stack: tuple[Dev, str, str], tmp_path: Path, kind: str, how: str, code: str, cause: str
) -> None:
    dev, kafka, clickhouse = stack
    starts = tmp_path / "starts"
    killer_id = f"killer-{kind}-{how}"
    with Client(kafka) as client:
        killer, *neighbours = client.enqueue_many(
            [
                Request(type=kind, user_id="k", job_id=killer_id,
                        payload={"how": how, "file": str(starts)}),
                *(
                    Request(type="good" if number % 2 else "good-thread", user_id=f"u{number}")
                    for number in range(NEIGHBOURS)
                ),
            ]
        )
        for handle in neighbours:
            assert client.wait(handle, SECONDS).status == "succeeded", dev.told()
        neighbours_ended_at = time.time()
        end = client.wait(killer, SECONDS)
    assert end.status == "failed"
    assert end.error is not None
    assert end.error.code == code, dev.told()
    assert cause.partition(" (")[0] in end.error.message
    begun = [float(line) for line in starts.read_text().split()]
    assert len(begun) <= (STARTS_MAX if code == "WORKER_LOST" else ATTEMPTS), dev.told()
    assert neighbours_ended_at - begun[0] < NEIGHBOUR_SECONDS, dev.told()
    story = wait_until(
        lambda: [e for e in story_of(clickhouse, killer_id) if e["event"] == "failed"]
        and story_of(clickhouse, killer_id),
        SECONDS, "its end is not in SQL",
    )
    rescues = [event for event in story if event["event"] == "rescued"]
    # The last start ends a process of its own, and no worker.
    assert len(rescues) == (len(begun) - 1 if code == "WORKER_LOST" else 0)
    assert all(cause in str(event["data"]) for event in rescues), rescues


def test_no_job_fails_for_what_its_neighbours_do(stack: tuple[Dev, str, str]) -> None:
    dev, kafka, _ = stack
    with Client(kafka) as client:
        innocents = client.enqueue_many(
            [
                Request(type="innocent" if number % 2 else "innocent-thread",
                        user_id=f"i{number}", payload={"seconds": INNOCENT_SECONDS})
                for number in range(INNOCENTS)
            ]
        )
        # One after another, so that each meets innocent jobs that have run for a while.
        killers = client.enqueue_many(
            [
                Request(type="later", user_id=f"l{number}", payload={"seconds": number})
                for number in range(KILLERS)
            ]
        )
        for handle in innocents:
            assert client.wait(handle, SECONDS).status == "succeeded", dev.told()
        for handle in killers:
            end = client.wait(handle, SECONDS)
            assert end.error is not None
            assert end.error.code == "WORKER_LOST", dev.told()
