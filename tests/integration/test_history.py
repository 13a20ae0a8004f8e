"""Old ends out of ClickHouse, through its HTTP port: which job of an id is meant.

Owns the proof that `Client.wait` answers with the end of the job that was asked for, however often
its id was used, and keeps its time-out while ClickHouse is silent.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from agents import topics as topics_
from agents.clickhouse.port import ClickHousePort
from schemas.topics import Topics
from tests.page.sample import Life, Sample, engine_with, request
from tests.waiting import wait_until
from tidemill import AsyncClient, Client, JobHandle, WaitTimeout
from tidemill.history import find_completed, read_only_rows, story_rows
from tidemill.sql import SqlError, query_rows

FIRST = datetime(2026, 3, 1, 9, tzinfo=UTC)
SECOND = FIRST + timedelta(days=3)
SECONDS = 30.0


def ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def succeed(life: Life) -> Life:
    life.tell("dispatched", "dispatched", 5)
    life.tell("attempt_succeeded", "running", 20)
    return life.tell("succeeded", "succeeded", data=f'{{"result":{ms(life.begun)}}}', run_ms=20)


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    sample = Sample()
    # Its id was used again when nobody knew the first one any more.
    for at in (FIRST, SECOND):
        succeed(request(sample, at, "u", "twice", "t", "default", {}))
    # Its first life is over, its second one is not.
    succeed(request(sample, FIRST, "u", "alive", "t", "default", {}))
    request(sample, SECOND, "u", "alive", "t", "default", {})
    # Asked for again after its end, when it was still known.
    known = succeed(request(sample, FIRST, "u", "known", "t", "default", {}))
    known.at = FIRST + timedelta(hours=5)
    known.tell("duplicate_ignored", "succeeded", sequence=0, incarnation=0, reason="already_ended")
    with engine_with(tmp_path_factory.mktemp("history"), sample) as engine:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        port = ClickHousePort(engine, port=0)
        asyncio.run_coroutine_threadsafe(port.start(), loop).result(SECONDS)
        yield port.url
        asyncio.run_coroutine_threadsafe(port.stop(), loop).result(SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(SECONDS)
        loop.close()


@pytest.mark.parametrize(
    ("job_id", "asked_at", "born_at"),
    [
        ("twice", FIRST, FIRST),
        ("twice", SECOND, SECOND),
        ("alive", FIRST, FIRST),
        ("alive", SECOND, None),
        ("known", FIRST, FIRST),
        ("known", FIRST + timedelta(hours=5), FIRST),
        # The request has not been answered yet, as far as ClickHouse knows.
        ("known", SECOND, None),
        ("nobody", FIRST, None),
    ],
)
def test_the_end_is_that_of_the_job_that_was_asked_for(
    clickhouse: str, job_id: str, asked_at: datetime, born_at: datetime | None
) -> None:
    found = find_completed(clickhouse, "u", job_id, 1, since_ms=ms(asked_at) - 1_000)
    assert (found and found.result) == (born_at and ms(born_at))
    if found is not None:
        assert (found.status, found.attempts, found.wait_ms) == ("succeeded", 1, None)
        assert found.requested_at == born_at.strftime("%Y-%m-%dT%H:%M:%S.000Z") if born_at else ""


def test_a_story_is_told_oldest_first(clickhouse: str) -> None:
    told = story_rows(clickhouse, "known", "u")
    # Events that only answer somebody carry no incarnation.
    assert next(row["event"] for row in told) == "requested"
    assert [row["event"] for row in told][-1] == "duplicate_ignored"
    assert [row["occurred_at"] for row in told] == sorted(row["occurred_at"] for row in told)


def test_a_wait_finds_an_old_end(kafka: str, topic_prefix: str, clickhouse: str) -> None:
    # Nothing is on the topics: the end comes from ClickHouse.
    topics_.apply(kafka, Topics(topic_prefix), 4)
    handle = JobHandle("twice", "u", "t", "jobs.requested", ms(FIRST))
    with Client(kafka, topic_prefix=topic_prefix, clickhouse=clickhouse) as client:
        assert client.wait(handle, SECONDS).result == ms(FIRST)


async def test_a_silent_clickhouse_holds_up_no_wait(kafka: str, topic_prefix: str) -> None:
    topics_.apply(kafka, Topics(topic_prefix), 4)
    handle = JobHandle("twice", "u", "t", "jobs.requested", ms(FIRST))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begun = time.monotonic()
        with Client(kafka, topic_prefix=topic_prefix, clickhouse=address) as client:
            with pytest.raises(WaitTimeout):
                client.wait(handle, 0.5)
            assert time.monotonic() - begun < SECONDS / 2
        async with AsyncClient(kafka, topic_prefix=topic_prefix, clickhouse=address) as other:
            with pytest.raises(WaitTimeout):
                await other.wait(handle, 0.5)
        assert time.monotonic() - begun < SECONDS


@pytest.mark.parametrize("sql", ["SELECT 1, 'a' FORMAT CSV", "SELECT 1 FORMAT TSV"])
def test_a_format_in_the_query_is_named(clickhouse: str, sql: str) -> None:
    with pytest.raises(SqlError, match="--format"):
        read_only_rows(clickhouse, sql)


def test_who_is_no_clickhouse_is_named() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def answer() -> None:
            for said in (b"SSH-2.0-Other\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"):
                caller, _ = listening.accept()
                caller.recv(65_536)
                caller.sendall(said)
                caller.close()

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        for words in ("no answer from ClickHouse", "did not answer as ClickHouse does"):
            with pytest.raises(SqlError, match=words):
                query_rows(address, "SELECT 1", timeout_seconds=SECONDS)
        wait_until(lambda: not answering.is_alive(), SECONDS, "still answering")
