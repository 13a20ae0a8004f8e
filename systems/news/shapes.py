"""The JSON shapes of the web application: those that were always there, and what came with us.

Owns names and units of what is told. Refuses to look anything up.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from systems.news import tables
from systems.news.index import Found
from systems.news.tables import Run, Source

Spent = tuple[int, int, float | None]
"""Input tokens, output tokens, dollars (None: not known)."""


def instant(at: datetime | None) -> str | None:
    """UTC with milliseconds, as JavaScript writes it."""
    return None if at is None else at.isoformat(timespec="milliseconds") + "Z"


def cron_of(seconds: float) -> str:
    """An interval as a cron expression, as the old system told it; six fields below a minute.

    What no expression says, such as seven minutes over the hour, is told by its nearest.
    """
    whole = max(1, round(seconds))
    if whole < 60:
        return f"*/{whole} * * * * *"
    if whole < 3_600:
        return f"*/{round(whole / 60)} * * * *"
    hours = round(whole / 3_600)
    return "0 * * * *" if hours == 1 else f"0 */{hours} * * *" if hours < 24 else "0 0 * * *"


def described(seconds: float) -> str:
    """An interval in words: `Runs every 5 minutes`."""
    for unit, length in (("hour", 3_600), ("minute", 60)):
        if seconds >= length and seconds % length == 0:
            count = round(seconds / length)
            return f"Runs every {count} {unit}{'' if count == 1 else 's'}"
    return f"Runs every {seconds:g} second{'' if seconds == 1 else 's'}"


def run(shown: Run, spent: Spent | None, *, with_age: bool = False) -> dict[str, Any]:
    """One run; `with_age`: with the time since its end, as the last one has it."""
    tokens_in, tokens_out, dollars = spent or (0, 0, 0.0)
    shape = {
        "id": shown.id, "startedAt": instant(shown.started_at),
        "completedAt": instant(shown.completed_at), "status": shown.status,
        "articlesProcessed": shown.articles, "embeddingsCreated": shown.embeddings,
        "durationMs": shown.duration_ms, "errorMessage": shown.error,
        "feedsFailed": shown.feeds_failed, "inputTokens": tokens_in, "outputTokens": tokens_out,
        "costUsd": dollars,
    }
    if with_age:
        age = tables.now() - (shown.completed_at or shown.started_at)
        shape["timeSinceLastRunMs"] = round(age.total_seconds() * 1000)
    return shape


def source(shown: Source) -> dict[str, Any]:
    """A feed's figures."""
    feed = shown.feed
    return {
        "url": feed.url, "articles": shown.articles, "embeddings": shown.embeddings,
        "newestArticleAt": instant(shown.newest_at), "fetches": feed.fetches,
        "notModified": feed.not_modified, "failures": feed.failures,
        "consecutiveFailures": feed.consecutive_failures, "lastError": feed.last_error,
        "retryAt": instant(feed.retry_at), "fetchedAt": instant(feed.fetched_at),
    }


def found(shown: Found) -> dict[str, Any]:
    """A source of an answer."""
    return {"url": shown.url, "title": shown.title, "distance": round(shown.distance, 6)}
