"""R4 on the whole stack: `tidemill dev systems.news`, feeds over HTTP, the web application.

Owns what a user of the running system sees: the trigger, shared ingestions, a question, the stop.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from systems.news.settings import Settings
from systems.news.tables import News, Run
from systems.news.web import create_app
from tests.systems.feed_server import Answer, FeedServer, feed_server, rss
from tests.systems.real_texts import articles
from tests.tidy.sources import ROOT
from tests.waiting import wait_until
from tidemill import AsyncClient

START_SECONDS = 90.0
SECONDS = 40.0
READY = re.compile(r"^ready kafka=(\S+) clickhouse=(\S+) ", re.MULTILINE)

pytestmark = pytest.mark.timeout(300)


class Stack:
    """One run of the command, over a feed. Another one in the same folder goes on from there."""

    def __init__(
        self, folder: Path, server: FeedServer, every: str = "1h", grace: float = 30.0
    ) -> None:
        self.server = server
        self.settings = Settings(
            feeds=server.at("/feed"), allow_private=True, database=f"sqlite:///{folder}/news.db",
            clickhouse="chdb://memory", provider="none", every=every,
            feed_seconds=120, backoff_seconds=0,
        )
        self.news = News(self.settings.database)
        told = {f"NEWS_{name.upper()}": str(getattr(self.settings, name))
                for name in ("feeds", "allow_private", "database", "provider", "every",
                              "feed_seconds", "backoff_seconds")}
        self.log = folder / "dev.log"
        words = ["--data", str(folder / "data"), "--kafka-port", "0", "--clickhouse-port", "0",
                 "--http-port", "0", "--stop-grace-seconds", str(grace)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tidemill", "dev", "systems.news", *words], cwd=ROOT,
                env={**os.environ, **told}, stdout=log, stderr=subprocess.STDOUT,
            )

    def ready(self) -> tuple[str, str]:
        """Addresses of Kafka and of ClickHouse's read-only port."""
        def ready() -> re.Match[str] | None:
            assert self.process.poll() is None, self.log.read_text()
            return READY.search(self.log.read_text())

        found = wait_until(ready, START_SECONDS, self.log.read_text)
        assert found is not None
        return found[1], found[2]

    def publish(self, numbers: Sequence[int], waits_for: threading.Event | None = None) -> None:
        items = [(f"http://news.example/{number}", *articles()[number]) for number in numbers]
        self.server.answers["/feed"] = Answer(rss(items), waits_for=waits_for)

    def runs(self, status: str) -> list[Run]:
        return [run for run in self.news.last_runs(100) if run.status == status]

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(SECONDS)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with feed_server() as server:
        server.answers["/feed"] = Answer(rss([]))
        running = Stack(tmp_path_factory.mktemp("news"), server)
        try:
            yield running
        finally:
            running.process.poll() is None and running.stop()
            running.news.close()


@asynccontextmanager
async def serving(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    kafka, _ = await asyncio.to_thread(stack.ready)
    client = AsyncClient(kafka=kafka)
    app = create_app(stack.settings, client)
    try:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://news", timeout=SECONDS
            ) as web,
        ):
            yield web
    finally:
        await client.close()


def events(text: str) -> list[tuple[str, Any]]:
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(a.removeprefix("event: "), json.loads(b.removeprefix("data: "))) for a, b in blocks]


def test_r4_1_the_first_run_is_at_once_and_a_tick_meanwhile_is_skipped_and_told(
    tmp_path: Path
) -> None:
    with feed_server() as server:
        release = threading.Event()
        stack = Stack(tmp_path, server, every="2s")
        stack.publish(range(3), release)
        try:
            _, clickhouse = stack.ready()
            wait_until(lambda: server.asked, SECONDS, stack.log.read_text)
            sql = ("SELECT count() FROM jobs WHERE type = 'news.ingest' AND status = 'skipped'"
                   " AND reason = 'overlap'")
            wait_until(
                lambda: int(httpx.get(clickhouse, params={"query": sql}).text) >= 2, SECONDS,
                stack.log.read_text,
            )
            assert len(server.asked) == 1
            release.set()
            wait_until(lambda: len(stack.runs("SUCCESS")) >= 2, SECONDS, stack.log.read_text)
            runs = sorted(stack.runs("SUCCESS"), key=lambda run: run.started_at)
            assert [run.articles for run in runs[:2]] == [3, 0]
            assert runs[0].completed_at is not None
            assert runs[0].completed_at <= runs[1].started_at
        finally:
            stack.stop()
            stack.news.close()


async def until_asked(stack: Stack, before: int) -> None:
    """Until a feed has been asked for once more than that."""
    await asyncio.to_thread(
        wait_until, lambda: len(stack.server.asked) > before, SECONDS, stack.log.read_text
    )


async def test_r4_9_an_ingestion_can_be_asked_for(stack: Stack) -> None:
    stack.ready()
    await asyncio.to_thread(
        wait_until, lambda: stack.news.last_runs(1) and not stack.runs("RUNNING"), SECONDS,
        stack.log.read_text,
    )  # the schedule's first
    before = len(stack.runs("SUCCESS"))
    stack.publish(range(6))
    async with serving(stack) as web:
        answer = await web.post("/api/ingest")
        assert answer.status_code == 202
        await asyncio.to_thread(
            wait_until, lambda: len(stack.runs("SUCCESS")) > before, SECONDS, stack.log.read_text
        )
        status = (await web.get("/api/job-status")).json()
    assert status["lastRun"]["articlesProcessed"] == 6
    assert status["scheduler"]["running"] is True
    assert status["stats"]["successfulRuns"] == before + 1


async def test_r4_7_questions_at_one_time_share_an_ingestion(stack: Stack) -> None:
    """All of them, of two web processes, wait for one reading of the feed, which is held until all
    have asked."""
    _, clickhouse = await asyncio.to_thread(stack.ready)
    asked = len(stack.server.asked)
    release = threading.Event()
    stack.publish(range(8), release)
    before, known = len(stack.runs("SUCCESS")), refreshes(clickhouse)
    async with serving(stack) as one, serving(stack) as other:
        asks = [
            asyncio.create_task((one, other)[n % 2].post("/ask", json={"question": title}))
            for n, (title, _) in enumerate(articles()[:6])
        ]
        await until_asked(stack, asked)
        await asyncio.to_thread(
            wait_until, lambda: refreshes(clickhouse) == known + 6, SECONDS, stack.log.read_text
        )
        release.set()
        told = [events(each.text) for each in await asyncio.gather(*asks)]
    assert len(stack.server.asked) == asked + 1
    assert len(stack.runs("SUCCESS")) == before + 1
    ingestions = [data for each in told for name, data in each if name == "ingestion"]
    assert [each["articles"] for each in ingestions] == [2] * 6


def refreshes(clickhouse: str) -> int:
    """How many ingestions have been asked for by questions."""
    sql = "SELECT count() FROM jobs WHERE type = 'news.refresh'"
    return int(httpx.get(clickhouse, params={"query": sql}).text)


async def test_r4_7_a_question_waits_for_the_run_that_goes_on(stack: Stack) -> None:
    """Somebody else's run brings the article: the question starts none, and finds it."""
    before, asked = len(stack.runs("SUCCESS")), len(stack.server.asked)
    release = threading.Event()
    stack.publish(range(60, 61), release)
    async with serving(stack) as web:
        await web.post("/api/ingest")
        await until_asked(stack, asked)
        threading.Timer(1.0, release.set).start()
        told = events((await web.post("/ask", json={"question": articles()[60][0]})).text)
    assert len(stack.server.asked) == asked + 1
    assert len(stack.runs("SUCCESS")) == before + 1
    assert told[-2][0] == "sources"
    assert told[-2][1][0]["title"] == articles()[60][0]


async def test_r4_8_a_question_finds_what_came_a_moment_ago(stack: Stack) -> None:
    stack.publish(range(40, 41))
    async with serving(stack) as web:
        told = events((await web.post("/ask", json={"question": articles()[40][0]})).text)
    names = [name for name, _ in told]
    assert names == ["sources", "ingestion", "sources", "done"]
    assert articles()[40][0] not in [each["title"] for each in told[0][1]]
    assert told[2][1][0]["title"] == articles()[40][0]


async def test_r4_6_a_stop_lets_the_run_end_and_starts_no_other(stack: Stack) -> None:
    """The run takes longer than `dev` waits by itself, and not the 30 s that it was told."""
    before, asked = len(stack.runs("SUCCESS")), len(stack.server.asked)
    release = threading.Event()
    stack.publish(range(50, 53), release)
    async with serving(stack) as web:
        await web.post("/api/ingest")
        await until_asked(stack, asked)
        stack.process.terminate()
        await web.post("/api/ingest")
    threading.Timer(6.0, release.set).start()
    code = await asyncio.to_thread(stack.process.wait, SECONDS)
    assert code == 0, stack.log.read_text()
    newest, *_ = stack.news.last_runs(1)
    assert (newest.status, newest.articles) == ("SUCCESS", 3)
    assert len(stack.runs("SUCCESS")) == before + 1
    assert stack.runs("RUNNING") == []


async def test_r4_4_three_failures_are_critical_and_r4_6_what_the_stop_cuts_off_runs_again(
    tmp_path: Path
) -> None:
    """Told in the log and by the API; the figures outlive the stop, and no article is lost."""
    with feed_server() as server:
        stack = Stack(tmp_path, server, grace=1.0)  # its feed is not there: HTTP 404
        try:
            async with serving(stack) as web:
                for failed in (1, 2, 3):
                    await until_runs(stack, "FAILED", failed)
                    status = (await web.get("/api/job-status")).json()
                    assert status["stats"]["consecutiveFailures"] == failed
                    assert status["healthy"] is (failed < 3)
                    if failed < 3:
                        await web.post("/api/ingest")
                assert "Traceback" in status["lastRun"]["errorMessage"]
                await asyncio.to_thread(
                    wait_until, lambda: "failed again and again" in stack.log.read_text(), SECONDS,
                    stack.log.read_text,
                )
                asked = len(server.asked)
                stack.publish(range(3), threading.Event())  # and never answers
                await web.post("/api/ingest")
                await until_asked(stack, asked)
            assert await asyncio.to_thread(stack.stop) == 0, stack.log.read_text()
            assert [run.error for run in stack.runs("FAILED")].count("the run was stopped") == 1
            stack.publish(range(3))
            again = Stack(tmp_path, server)
            try:
                await until_runs(again, "SUCCESS", 1)
                figures = again.news.run_figures()
                assert (figures["totalRuns"], figures["failedRuns"]) == (5, 4)
                assert figures["consecutiveFailures"] == 0
                assert [run.articles for run in again.runs("SUCCESS")] == [3]
            finally:
                again.stop()
                again.news.close()
        finally:
            stack.process.poll() is None and stack.stop()
            stack.news.close()


async def until_runs(stack: Stack, status: str, count: int) -> None:
    """Until there are so many runs in that state."""
    await asyncio.to_thread(
        wait_until, lambda: len(stack.runs(status)) >= count, START_SECONDS, stack.log.read_text
    )
