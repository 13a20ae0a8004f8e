"""The jobs of the news system: an ingestion each minute, and one that a question asks for.

Owns what a worker runs. Refuses to know how an ingestion goes (`ingestion`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel

from systems.news.ingestion import run_once
from systems.news.model import model_of
from systems.news.settings import RUN_SECONDS_MAX, Settings
from systems.news.tables import News
from tidemill import Context, job, schedule
from tidemill.errors import Skip


class Ingest(BaseModel):
    """Why an ingestion was asked for: `manual`, `ask`, `schedule`."""

    reason: str = "manual"


@cache
def _database(address: str) -> News:
    return News(address)


async def _run(ctx: Context) -> dict[str, Any]:
    settings = Settings()
    model = model_of(settings)
    try:
        figures = await run_once(_database(settings.database), settings, model, ctx.job_id)
    finally:
        if model is not None:
            await model.close()
    if figures is None:
        raise Skip("already_running")
    return {
        "articles": figures.articles, "embeddings": figures.embeddings,
        "feeds_failed": figures.feeds_failed, "feeds_left_alone": figures.feeds_left_alone,
    }


@schedule(
    "news.ingest", every=Settings().every, first="now", overlap="skip",
    payload={"reason": "schedule"},
)
@job("news.ingest", timeout_seconds=RUN_SECONDS_MAX, max_attempts=1)
async def ingest(payload: Ingest, ctx: Context) -> dict[str, Any]:
    """All feeds once. Ends as skipped while another run goes on."""
    return await _run(ctx)


@job(
    "news.refresh", timeout_seconds=RUN_SECONDS_MAX, max_attempts=1, collapse_by="payload.reason"
)
async def refresh(payload: Ingest, ctx: Context) -> dict[str, Any]:
    """The same, asked for by a question: questions of all web processes share the run of the first
    while it waits or goes on."""
    return await _run(ctx)
