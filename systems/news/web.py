"""The web application: questions, the state of the ingestion, figures, a trigger.

Owns the paths, and what a question waits for. Refuses to run an ingestion: it asks Tidemill for a
job, and questions at one time share its run (`collapse_by`).

    uvicorn --factory systems.news.web:create_app --port 3001
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import sqlalchemy as sa
import structlog
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field

from systems.news import shapes, tables
from systems.news.embedding import Vectors, embedder
from systems.news.index import Found, Index
from systems.news.jobs import Ingest, ingest, refresh
from systems.news.model import LanguageModel, ModelError, model_of
from systems.news.settings import ASK_WAIT_SECONDS, Settings
from systems.news.tables import Article, Chunk, News, Run, is_critical
from tidemill import AsyncClient, ClientError, WaitTimeout
from tidemill.policies import seconds_of

log = structlog.get_logger("news")

USER: Final = "system:news"
RUNS_SHOWN: Final = 10
INDEX_SECONDS: Final = 2.0  # how late an article of the schedule's is among first sources
JOIN_POLL_SECONDS: Final = 0.05
INTERVALS_LATE: Final = 3  # a schedule whose last run is older does not run
QUESTION_LENGTH_MAX: Final = 2_000


class Question(BaseModel):
    """The body of POST /ask."""

    question: str = Field(min_length=1, max_length=QUESTION_LENGTH_MAX)


class Service:
    """What the paths share."""

    def __init__(self, settings: Settings, client: AsyncClient, model: LanguageModel | None):
        self.settings = settings
        self.client = client
        self.model = model
        self.news = News(settings.database)
        self.index = Index(settings.clickhouse)

    def close(self) -> None:
        self.index.close()
        self.news.close()

    # -- ingestion ---------------------------------------------------------------------------------

    async def fresh(self) -> dict[str, Any]:
        """What an ingestion brought: a new one, or the one that others have asked for already."""
        try:
            handle = await refresh.enqueue(Ingest(reason="ask"), user_id=USER, client=self.client)
            end = await handle.result(timeout=ASK_WAIT_SECONDS)
        except (ClientError, WaitTimeout) as error:
            return {"status": "unavailable", "reason": str(error)[:300]}
        status = str(end.status if end.collapsed_into is None else end.collapsed_into.status)
        if status == "succeeded":
            return {"status": status, **dict(end.result or {})}
        return await self._joined(status)

    async def _joined(self, status: str) -> dict[str, Any]:
        """The schedule's run goes on, or one by hand: its end is this one's, too."""
        deadline = asyncio.get_running_loop().time() + ASK_WAIT_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            runs = await asyncio.to_thread(self.news.last_runs, 1)
            if not runs or runs[0].status != tables.RUNNING:
                return {"status": status}
            await asyncio.sleep(JOIN_POLL_SECONDS)
        return {"status": "unavailable", "reason": f"no end within {ASK_WAIT_SECONDS:g} s"}

    async def keep_up(self) -> None:
        """Takes in what the schedule's runs bring, so that a question's first sources are new."""
        while True:
            await asyncio.sleep(INDEX_SECONDS)
            try:
                await asyncio.to_thread(self.index.catch_up, self.news)
            except Exception as error:  # noqa: BLE001  # a database that is away comes back
                log.warning("the index is late", error=repr(error))

    # -- questions ---------------------------------------------------------------------------------

    async def answer(self, question: str) -> AsyncIterator[str]:
        """Server-sent events: sources, ingestion, sources again if that brought some, the text."""
        ingestion = asyncio.create_task(self.fresh(), name="news-fresh")
        vector = await asyncio.to_thread(self._embedded, question)
        sources = await asyncio.to_thread(self.index.search, self.news, vector)
        yield _event("sources", [shapes.found(each) for each in sources])
        done = await ingestion
        yield _event("ingestion", done)
        await asyncio.to_thread(self.index.catch_up, self.news)
        known, sources = sources, await asyncio.to_thread(self.index.search, self.news, vector)
        if sources != known:  # whoever has taken in what is new: this question or another one
            yield _event("sources", [shapes.found(each) for each in sources])
        async for event in self._told(question, sources):
            yield event

    async def _told(self, question: str, sources: Sequence[Found]) -> AsyncIterator[str]:
        if self.model is None:
            yield _event("done", {"answered": False, "reason": "NEWS_PROVIDER is none"})
            return
        reason = None
        try:
            async with aclosing(self.model.answer(question, sources)) as pieces:
                async for piece in pieces:
                    yield _event("token", {"text": piece})
        except ModelError as error:
            reason = str(error)[:300]
        finally:  # also of a reader who went away
            calls = self.model.take_calls()
            await asyncio.to_thread(self.news.note_calls, "answer", calls)
        told = {"answered": True} if reason is None else {"answered": False, "reason": reason}
        yield _event("done", told)

    def _embedded(self, question: str) -> Vectors:
        return embedder().embed([question]).reshape(-1)

    # -- state -------------------------------------------------------------------------------------

    def job_status(self) -> dict[str, Any]:
        """The shape that GET /api/job-status always had."""
        runs = self.news.last_runs(RUNS_SHOWN)
        spent = self.news.spent_by(runs)
        stats = self.news.run_figures()
        every = seconds_of(self.settings.every, "NEWS_EVERY")
        last = shapes.run(runs[0], spent.get(runs[0].id), with_age=True) if runs else None
        return {
            "healthy": not is_critical(stats["consecutiveFailures"]),
            "scheduler": {
                "running": self._is_on_time(runs, every),
                "cronExpression": shapes.cron_of(every), "description": shapes.described(every),
                "currentlyExecuting": any(run.status == tables.RUNNING for run in runs),
            },
            "stats": stats,
            "lastRun": last,
            "recentRuns": [shapes.run(run, spent.get(run.id)) for run in runs],
        }

    def _is_on_time(self, runs: Sequence[Run], every: float) -> bool:
        """Whether a run goes on, or began not long ago."""
        if not runs:
            return False
        age = (tables.now() - runs[0].started_at).total_seconds()
        return runs[0].status == tables.RUNNING or age < INTERVALS_LATE * every

    def sources(self) -> list[dict[str, Any]]:
        """Figures of each source."""
        return [shapes.source(each) for each in self.news.sources()]

    def metrics(self) -> str:
        """The figures in Prometheus' text format."""
        stats = self.news.run_figures()
        with self.news.reads() as session:
            articles = session.scalar(sa.select(sa.func.count()).select_from(Article)) or 0
            pieces = session.scalar(sa.select(sa.func.count()).select_from(Chunk)) or 0
        lines = [
            f'news_runs_total{{status="success"}} {stats["successfulRuns"]}',
            f'news_runs_total{{status="failed"}} {stats["failedRuns"]}',
            f"news_run_failures_consecutive {stats['consecutiveFailures']}",
            f"news_run_duration_mean_seconds {stats['averageDurationMs'] / 1000}",
            f"news_articles {articles}", f"news_chunks {pieces}",
        ]
        for source in self.sources():
            name = json.dumps(source["url"])
            lines.append(f"news_feed_articles_total{{feed={name}}} {source['articles']}")
            lines.append(f"news_feed_failures_total{{feed={name}}} {source['failures']}")
        for each in self.news.spending():
            labels = ",".join(
                f"{name}={json.dumps(each[name])}"
                for name in ("provider", "model", "purpose", "outcome")
            )
            lines.append(f"news_model_calls_total{{{labels}}} {each['calls']}")
            lines.append(f"news_model_input_tokens_total{{{labels}}} {each['inputTokens']}")
            lines.append(f"news_model_output_tokens_total{{{labels}}} {each['outputTokens']}")
            lines.append(f"news_model_cost_dollars_total{{{labels}}} {each['costUsd'] or 0}")
        return "\n".join(lines) + "\n"


def create_app(
    settings: Settings | None = None, client: AsyncClient | None = None,
    model: LanguageModel | None = None,
) -> FastAPI:
    """The application. Without arguments all comes from the environment."""
    chosen = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        own = model_of(chosen) if model is None else None
        asks = client or AsyncClient()
        service = await asyncio.to_thread(Service, chosen, asks, model or own)
        await asyncio.to_thread(service.index.catch_up, service.news)
        await asyncio.to_thread(embedder)
        app.state.service = service
        keeping_up = asyncio.create_task(service.keep_up(), name="news-index")
        try:
            yield
        finally:
            keeping_up.cancel()
            await asyncio.wait([keeping_up])
            if own is not None:
                await own.close()
            if client is None:
                await asks.close()
            service.close()

    app = FastAPI(title="News", lifespan=lifespan)

    def service() -> Service:
        found: Service = app.state.service
        return found

    @app.post("/ask")
    async def ask(body: Question) -> StreamingResponse:
        return StreamingResponse(service().answer(body.question), media_type="text/event-stream")

    @app.get("/api/job-status")
    def job_status() -> dict[str, Any]:
        return service().job_status()

    @app.post("/api/ingest", status_code=202)
    async def trigger() -> dict[str, str]:
        handle = await ingest.enqueue(
            Ingest(reason="manual"), user_id=USER, client=service().client
        )
        return {"jobId": handle.job_id, "userId": handle.user_id}

    @app.get("/api/sources")
    def sources() -> list[dict[str, Any]]:
        return service().sources()

    @app.get("/api/models")
    def models() -> list[dict[str, Any]]:
        return service().news.spending()

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> str:
        return service().metrics()

    return app


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
