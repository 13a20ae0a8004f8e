"""One ingestion: all feeds, their new articles, summaries, chunks, embeddings, saved one by one.

Owns the order of the steps and what happens when one fails. Refuses to know who asked for it.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import structlog

from systems.news import tables
from systems.news.chunks import chunks
from systems.news.doors import checked_client
from systems.news.embedding import embedder
from systems.news.feeds import Entry, FeedError, Fetched, fetch
from systems.news.model import LanguageModel, ModelError, lead
from systems.news.settings import (
    ARTICLES_AT_ONCE,
    EMBEDDINGS_PER_CALL,
    SUMMARIES_PER_CALL,
    SUMMARY_SECONDS_MAX,
    Settings,
)
from systems.news.tables import Article, Chunk, Feed, News, Run, is_critical

log = structlog.get_logger("news")


GROUPS_AT_ONCE: Final = ARTICLES_AT_ONCE // SUMMARIES_PER_CALL


class AllFeedsFailed(Exception):
    """No feed could be read."""


@dataclass(slots=True)
class Figures:
    """What a run has done so far."""

    articles: int = 0
    embeddings: int = 0
    feeds_failed: int = 0
    feeds_left_alone: int = 0


class Patience:
    """How long a run still waits for its model. Calls side by side wait at the same time."""

    def __init__(self) -> None:
        self._left = SUMMARY_SECONDS_MAX
        self._waiting = 0
        self._since = 0.0

    @property
    def seconds(self) -> float:
        """What is left; below 0: nothing."""
        return self._left - (time.monotonic() - self._since if self._waiting else 0.0)

    @contextmanager
    def spent(self) -> Iterator[None]:
        """Time that counts."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting += 1
        try:
            yield
        finally:
            if self._waiting == 1:
                self._left = self.seconds
            self._waiting -= 1


async def run_once(
    news: News, settings: Settings, model: LanguageModel | None, job_id: str
) -> Figures | None:
    """A run with its record; None when another one is running. Raises what made it fail."""
    run = await asyncio.to_thread(news.begin_run, job_id)
    if run is None:
        return None
    figures = Figures()
    error: str | None = "the run was stopped"
    try:
        await _ingest(news, settings, model, run, figures)
        error = None
    except Exception:
        error = traceback.format_exc()
        raise
    finally:
        # Not in a thread: the end is written also when this task is being cancelled.
        if model is not None:
            news.note_calls("summary", model.take_calls(), run.id)
        failed = news.end_run(
            run, articles=figures.articles, embeddings=figures.embeddings,
            feeds_failed=figures.feeds_failed, error=error,
        )
        if is_critical(failed):
            log.critical("ingestion failed again and again", consecutive_failures=failed)
    return figures


async def _ingest(
    news: News, settings: Settings, model: LanguageModel | None, run: Run, figures: Figures
) -> None:
    feeds = await asyncio.to_thread(news.feeds, settings.feed_urls())
    due = [feed for feed in feeds if feed.retry_at is None or feed.retry_at <= tables.now()]
    figures.feeds_left_alone = len(feeds) - len(due)
    client = checked_client(allow_private=settings.allow_private, seconds=settings.feed_seconds)
    async with client:
        found = await asyncio.gather(*(_read(client, feed, news, settings) for feed in due))
    figures.feeds_failed = sum(each is None for each in found)
    if due and figures.feeds_failed == len(due):
        raise AllFeedsFailed(f"none of {len(due)} feeds could be read; see /api/sources")
    fetched = {feed.url: each for feed, each in zip(due, found, strict=True) if each is not None}
    await _save_new(news, model, run, fetched, figures)
    for url, each in fetched.items():
        await asyncio.to_thread(
            news.feed_read, url, each.etag, each.last_modified,
            is_modified=each.entries is not None, problem=each.problem,
        )


async def _read(
    client: Any, feed: Feed, news: News, settings: Settings
) -> Fetched | None:
    try:
        return await fetch(client, feed.url, feed.etag, feed.last_modified, settings)
    except FeedError as error:
        log.warning("feed failed", feed=feed.url, error=str(error))
        await asyncio.to_thread(
            news.feed_failed, feed.url, str(error), settings.backoff_seconds
        )
        return None


async def _save_new(
    news: News, model: LanguageModel | None, run: Run, fetched: dict[str, Fetched],
    figures: Figures,
) -> None:
    """Saves each article that nobody has: five to a call of the model, 25 at once."""
    entries: dict[str, tuple[str, Entry]] = {}
    for feed, each in fetched.items():
        for entry in each.entries or []:
            entries.setdefault(entry.url, (feed, entry))
    unknown = await asyncio.to_thread(news.unknown, list(entries))
    new = [pair for url, pair in entries.items() if url in unknown]
    loop, patience = asyncio.get_running_loop(), Patience()
    room = asyncio.Semaphore(GROUPS_AT_ONCE)

    async def save(feed: str, entry: Entry, summary: str, by: str) -> None:
        count = await loop.run_in_executor(
            threads, _save, news, run.id, feed, entry, summary, by
        )
        if count is not None:
            figures.articles += 1
            figures.embeddings += count

    async def save_group(group: Sequence[tuple[str, Entry]]) -> None:
        async with room:
            summaries, by = await _summaries(model, [entry.text for _, entry in group], patience)
            if model is not None:
                calls = model.take_calls()
                await asyncio.to_thread(news.note_calls, "summary", calls, run.id)
            await asyncio.gather(*(
                save(feed, entry, summary, by)
                for (feed, entry), summary in zip(group, summaries, strict=True)
            ))

    threads = ThreadPoolExecutor(ARTICLES_AT_ONCE, "news-articles")
    try:
        async with asyncio.TaskGroup() as tasks:
            for at in range(0, len(new), SUMMARIES_PER_CALL):
                tasks.create_task(save_group(new[at : at + SUMMARIES_PER_CALL]))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    finally:
        threads.shutdown(wait=False)  # a cancelled run must not hold up the worker's loop


async def _summaries(
    model: LanguageModel | None, texts: Sequence[str], patience: Patience
) -> tuple[list[str], str]:
    if model is not None and patience.seconds > 0:
        try:
            with patience.spent():
                async with asyncio.timeout(patience.seconds):
                    return await model.summaries(texts), model.name
        except (ModelError, TimeoutError) as error:
            log.warning("no summaries; the first sentences stand in", error=repr(error))
    return [lead(text) for text in texts], "lead"


def _save(
    news: News, run_id: str, feed: str, entry: Entry, summary: str, by: str
) -> int | None:
    """In a thread: chunks, vectors, one transaction. None when the URL has come meanwhile."""
    pieces = chunks(f"{entry.title}. {entry.text}")
    rows: list[Chunk] = []
    for at in range(0, len(pieces), EMBEDDINGS_PER_CALL):
        some = pieces[at : at + EMBEDDINGS_PER_CALL]
        for number, (text, vector) in enumerate(
            zip(some, embedder().embed(some), strict=True), at
        ):
            rows.append(Chunk(
                number=number, text=text, vector=vector.astype("<f4").tobytes(), is_indexed=False
            ))
    published = None if entry.published_at is None else entry.published_at.replace(tzinfo=None)
    article = Article(
        url=entry.url, feed=feed, title=entry.title, text=entry.text, summary=summary,
        summary_by=by, published_at=published, saved_at=tables.now(),
        run_id=run_id,
    )
    return len(rows) if news.save(article, rows) else None
