"""The news database: feeds, articles, their chunks with vectors, and the record of each run.

Owns columns, keys and what is one transaction. Refuses to know where articles come from. SQL is the
truth: an article is saved with all its chunks or not at all. ClickHouse's table is made from here.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from systems.database import open_engine, reading
from systems.models import Call
from systems.news.settings import BACKOFF_SECONDS_MAX, FAILURES_CRITICAL, RUN_SECONDS_MAX

URLS_PER_QUERY: Final = 500  # below the bound of variables of every database

RUNNING: Final = "RUNNING"
SUCCESS: Final = "SUCCESS"
FAILED: Final = "FAILED"


class Base(DeclarativeBase):
    """All tables of the news system. Times are UTC, without a zone."""


class Feed(Base):
    """A source: what to ask with, and how its fetches went. Its articles are counted where they
    are, so that a run that was killed leaves no figure behind."""

    __tablename__ = "news_feeds"

    url: Mapped[str] = mapped_column(sa.String(2000), primary_key=True)
    etag: Mapped[str | None]
    last_modified: Mapped[str | None]
    fetches: Mapped[int] = mapped_column(default=0)
    not_modified: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    consecutive_failures: Mapped[int] = mapped_column(default=0)
    retry_at: Mapped[datetime | None]
    last_error: Mapped[str | None] = mapped_column(sa.Text)
    fetched_at: Mapped[datetime | None]


class Article(Base):
    """One article, known by its URL alone."""

    __tablename__ = "news_articles"

    id: Mapped[int] = mapped_column(primary_key=True)
    url: Mapped[str] = mapped_column(sa.String(2000), unique=True)
    feed: Mapped[str] = mapped_column(sa.String(2000), index=True)
    title: Mapped[str] = mapped_column(sa.Text)
    text: Mapped[str] = mapped_column(sa.Text)
    summary: Mapped[str] = mapped_column(sa.Text)
    summary_by: Mapped[str]
    """The model's name, or `lead` for the article's own first sentence."""
    published_at: Mapped[datetime | None]
    saved_at: Mapped[datetime]
    run_id: Mapped[str | None] = mapped_column(sa.ForeignKey("news_runs.id"), index=True)
    """The run that brought it: what a run did is known also when its worker died."""


class Chunk(Base):
    """A piece of an article; `vector` is 384 float32, little-endian."""

    __tablename__ = "news_chunks"
    __table_args__ = (sa.UniqueConstraint("article_id", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    article_id: Mapped[int] = mapped_column(sa.ForeignKey("news_articles.id"))
    number: Mapped[int]
    text: Mapped[str] = mapped_column(sa.Text)
    vector: Mapped[bytes]
    is_indexed: Mapped[bool] = mapped_column(default=False, index=True)


class Run(Base):
    """One ingestion. `claim` is set while it runs, and unique: two at a time cannot be."""

    __tablename__ = "news_runs"

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True)
    job_id: Mapped[str] = mapped_column(sa.String(300))
    claim: Mapped[str | None] = mapped_column(sa.String(20), unique=True)
    started_at: Mapped[datetime] = mapped_column(index=True)
    completed_at: Mapped[datetime | None]
    status: Mapped[str] = mapped_column(sa.String(10), index=True)
    articles: Mapped[int] = mapped_column(default=0)
    embeddings: Mapped[int] = mapped_column(default=0)
    feeds_failed: Mapped[int] = mapped_column(default=0)
    duration_ms: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(sa.Text)


class ModelCall(Base):
    """One call of a language model, failed ones too. `cost_usd` None: the price is not known."""

    __tablename__ = "news_model_calls"

    id: Mapped[int] = mapped_column(primary_key=True)
    purpose: Mapped[str] = mapped_column(sa.String(10))
    """`summary` or `answer`."""
    run_id: Mapped[str | None] = mapped_column(sa.ForeignKey("news_runs.id"), index=True)
    provider: Mapped[str] = mapped_column(sa.String(20))
    model: Mapped[str] = mapped_column(sa.String(200))
    outcome: Mapped[str] = mapped_column(sa.String(64))
    input_tokens: Mapped[int]
    output_tokens: Mapped[int]
    cost_usd: Mapped[float | None]
    duration_ms: Mapped[int]
    first_token_ms: Mapped[int | None]
    asked_at: Mapped[datetime] = mapped_column(index=True)


def now() -> datetime:
    """UTC as the tables hold it."""
    return datetime.now(UTC).replace(tzinfo=None)


@dataclass(frozen=True, slots=True)
class Source:
    """A feed and what it has brought. `newest_at`: when its newest article was saved."""

    feed: Feed
    articles: int
    embeddings: int
    newest_at: datetime | None


class News:
    """The database. All calls block; an event loop calls them in a thread."""

    def __init__(self, address: str) -> None:
        self.engine = open_engine(address)
        Base.metadata.create_all(self.engine)
        self.session = sessionmaker(self.engine, expire_on_commit=False)
        #: For what writes nothing.
        self.reads = sessionmaker(reading(self.engine), expire_on_commit=False)

    def close(self) -> None:
        self.engine.dispose()

    # -- feeds -------------------------------------------------------------------------------------

    def feeds(self, urls: Iterable[str]) -> list[Feed]:
        """The rows of these feeds, made when they are new."""
        wanted = list(urls)
        with self.session.begin() as session:
            known = {row.url: row for row in session.scalars(sa.select(Feed))}
            for url in wanted:
                if url not in known:
                    known[url] = Feed(
                        url=url, fetches=0, not_modified=0, failures=0, consecutive_failures=0,
                    )
                    session.add(known[url])
        return [known[url] for url in wanted]

    def feed_read(
        self, url: str, etag: str | None, last_modified: str | None, *, is_modified: bool,
        problem: str | None,
    ) -> None:
        """Called when the articles are saved: a worker that dies before asks without the tags."""
        with self.session.begin() as session:
            row = session.get_one(Feed, url)
            row.etag, row.last_modified = etag, last_modified
            row.fetches += 1
            row.not_modified += not is_modified
            row.consecutive_failures, row.retry_at = 0, None
            row.last_error, row.fetched_at = problem, now()

    def feed_failed(self, url: str, error: str, backoff_seconds: float) -> None:
        """A failing feed is left alone for a while that doubles."""
        with self.session.begin() as session:
            row = session.get_one(Feed, url)
            row.fetches += 1
            row.failures += 1
            row.consecutive_failures += 1
            pause = backoff_seconds * 2.0 ** min(row.consecutive_failures - 1, 20)
            row.retry_at = now() + timedelta(seconds=min(pause, BACKOFF_SECONDS_MAX))
            row.last_error = error[:1000]

    def sources(self) -> list[Source]:
        """Each feed with what it has brought."""
        brought = (
            sa.select(
                Article.feed, sa.func.count(sa.distinct(Article.id)).label("articles"),
                sa.func.count(Chunk.id).label("embeddings"),
                sa.func.max(Article.saved_at).label("newest_at"),
            )
            .outerjoin(Chunk, Chunk.article_id == Article.id).group_by(Article.feed).subquery()
        )
        with self.reads() as session:
            rows = session.execute(
                sa.select(Feed, brought.c.articles, brought.c.embeddings, brought.c.newest_at)
                .outerjoin(brought, brought.c.feed == Feed.url).order_by(Feed.url)
            ).all()
        return [Source(feed, count or 0, pieces or 0, at) for feed, count, pieces, at in rows]

    # -- articles ----------------------------------------------------------------------------------

    def unknown(self, urls: Sequence[str]) -> set[str]:
        """Those of the URLs that no article has."""
        known: set[str] = set()
        with self.reads() as session:
            for at in range(0, len(urls), URLS_PER_QUERY):
                some = urls[at : at + URLS_PER_QUERY]
                known.update(session.scalars(sa.select(Article.url).where(Article.url.in_(some))))
        return set(urls) - known

    def save(self, article: Article, chunks: Sequence[Chunk]) -> bool:
        """Article and chunks in one transaction; False when the URL has come meanwhile."""
        try:
            with self.session.begin() as session:
                session.add(article)
                session.flush()
                for chunk in chunks:
                    chunk.article_id = article.id
                session.add_all(chunks)
        except IntegrityError:
            return False
        return True

    # -- runs --------------------------------------------------------------------------------------

    def begin_run(self, job_id: str) -> Run | None:
        """A new run, or None while another one is running."""
        started = now()
        stale = started - timedelta(seconds=RUN_SECONDS_MAX)
        with self.session.begin() as session:
            # A claim of the same job, or one that is too old, is of a worker that died.
            died = session.scalars(
                sa.select(Run).where(Run.claim.is_not(None))
                .where(sa.or_(Run.job_id == job_id, Run.started_at < stale))
            ).all()
            for row in died:
                row.articles, row.embeddings = _brought(session, row.id)
                _end(row, started, "the worker died in the middle of this run")
        run = Run(
            id=str(uuid.uuid4()), job_id=job_id, claim="all", started_at=started, status=RUNNING,
            articles=0, embeddings=0, feeds_failed=0,
        )
        try:
            with self.session.begin() as session:
                session.add(run)
        except IntegrityError:
            return None
        return run

    def end_run(
        self, run: Run, *, articles: int = 0, embeddings: int = 0, feeds_failed: int = 0,
        error: str | None = None,
    ) -> int:
        """Ends the run; how many have failed in a row by now."""
        ended = now()
        with self.session.begin() as session:
            row = session.get_one(Run, run.id)
            row.articles, row.embeddings = articles, embeddings
            row.feeds_failed = feeds_failed
            _end(row, ended, error)
        return self.consecutive_failures()

    def consecutive_failures(self) -> int:
        """Runs that have failed since the last one that succeeded."""
        with self.reads() as session:
            last = session.scalar(
                sa.select(sa.func.max(Run.started_at)).where(Run.status == SUCCESS)
            )
            failed = sa.select(sa.func.count()).select_from(Run).where(Run.status == FAILED)
            if last is not None:
                failed = failed.where(Run.started_at > last)
            return int(session.scalar(failed) or 0)

    def run_figures(self) -> dict[str, Any]:
        """R4.4, over all runs that ever were."""
        with self.reads() as session:
            rows = session.execute(
                sa.select(Run.status, sa.func.count(), sa.func.avg(Run.duration_ms))
                .group_by(Run.status)
            ).all()
            mean = session.scalar(sa.select(sa.func.avg(Run.duration_ms)))
        counts = {str(status): int(count) for status, count, _ in rows}
        return {
            "totalRuns": sum(counts.values()),
            "successfulRuns": counts.get(SUCCESS, 0),
            "failedRuns": counts.get(FAILED, 0),
            "consecutiveFailures": self.consecutive_failures(),
            "averageDurationMs": round(float(mean or 0)),
        }

    def last_runs(self, count: int) -> list[Run]:
        """The newest first."""
        with self.reads() as session:
            return list(session.scalars(
                sa.select(Run).order_by(Run.started_at.desc(), Run.id).limit(count)
            ))

    # -- calls of models ---------------------------------------------------------------------------

    def note_calls(self, purpose: str, calls: Sequence[Call], run_id: str | None = None) -> None:
        """Keeps what was asked of a model."""
        if not calls:
            return
        rows = [
            {
                "purpose": purpose, "run_id": run_id, "provider": call.provider,
                "model": call.model, "outcome": call.outcome, "input_tokens": call.input_tokens,
                "output_tokens": call.output_tokens, "cost_usd": call.cost_usd,
                "duration_ms": call.duration_ms, "first_token_ms": call.first_token_ms,
                "asked_at": call.asked_at.astimezone(UTC).replace(tzinfo=None),
            }
            for call in calls
        ]
        with self.session.begin() as session:
            session.execute(sa.insert(ModelCall), rows)

    def spending(self) -> list[dict[str, Any]]:
        """Calls, tokens, dollars and time by model, purpose and outcome."""
        keys = (ModelCall.provider, ModelCall.model, ModelCall.purpose, ModelCall.outcome)
        sums: dict[str, Any] = {
            "calls": sa.func.count(), "inputTokens": sa.func.sum(ModelCall.input_tokens),
            "outputTokens": sa.func.sum(ModelCall.output_tokens),
            "costUsd": sa.func.sum(ModelCall.cost_usd),
            "durationMs": sa.func.sum(ModelCall.duration_ms),
            "firstTokenMs": sa.func.avg(ModelCall.first_token_ms),
        }
        with self.reads() as session:
            rows = session.execute(
                sa.select(*keys, *sums.values()).group_by(*keys).order_by(*keys)
            ).all()
        names = ("provider", "model", "purpose", "outcome", *sums)
        found = [dict(zip(names, row, strict=True)) for row in rows]
        for each in found:
            first = each["firstTokenMs"]
            each["firstTokenMs"] = None if first is None else round(float(first))
        return found

    def spent_by(self, runs: Sequence[Run]) -> dict[str, tuple[int, int, float | None]]:
        """Input tokens, output tokens and dollars of each of these runs that asked a model."""
        with self.reads() as session:
            rows = session.execute(
                sa.select(
                    ModelCall.run_id, sa.func.sum(ModelCall.input_tokens),
                    sa.func.sum(ModelCall.output_tokens), sa.func.sum(ModelCall.cost_usd),
                )
                .where(ModelCall.run_id.in_([run.id for run in runs])).group_by(ModelCall.run_id)
            ).all()
        return {str(row[0]): (int(row[1]), int(row[2]), row[3]) for row in rows}


def _end(row: Run, at: datetime, error: str | None) -> None:
    row.claim, row.completed_at, row.error = None, at, error
    row.status = SUCCESS if error is None else FAILED
    row.duration_ms = round((at - row.started_at).total_seconds() * 1000)


def _brought(session: Session, run_id: str) -> tuple[int, int]:
    """The articles and chunks that a run has saved."""
    row = session.execute(
        sa.select(sa.func.count(sa.distinct(Article.id)), sa.func.count(Chunk.id))
        .outerjoin(Chunk, Chunk.article_id == Article.id).where(Article.run_id == run_id)
    ).one()
    return int(row[0]), int(row[1])


def is_critical(consecutive_failures: int) -> bool:
    """R4.4: critical from three."""
    return consecutive_failures >= FAILURES_CRITICAL
