"""The news database: feeds, articles, their chunks with vectors, and the record of each run.

Owns columns, keys and what is one transaction. Refuses to know where articles come from. SQL is the
truth: an article is saved with all its chunks or not at all. ClickHouse's table is made from here.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from systems.news.settings import BACKOFF_SECONDS_MAX, FAILURES_CRITICAL, RUN_SECONDS_MAX

URLS_PER_QUERY: Final = 500  # below the bound of variables of every database
BUSY_SECONDS: Final = 30.0  # SQLite has one writer at a time; the others wait

RUNNING: Final = "RUNNING"
SUCCESS: Final = "SUCCESS"
FAILED: Final = "FAILED"


class Base(DeclarativeBase):
    """All tables of the news system. Times are UTC, without a zone."""


class Feed(Base):
    """A source: what to ask with, and its figures."""

    __tablename__ = "news_feeds"

    url: Mapped[str] = mapped_column(sa.String(2000), primary_key=True)
    etag: Mapped[str | None]
    last_modified: Mapped[str | None]
    articles: Mapped[int] = mapped_column(default=0)
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


def now() -> datetime:
    """UTC as the tables hold it."""
    return datetime.now(UTC).replace(tzinfo=None)


class News:
    """The database. All calls block; an event loop calls them in a thread."""

    def __init__(self, address: str) -> None:
        url = sa.make_url(address)
        is_sqlite = url.get_backend_name() == "sqlite"
        if is_sqlite and url.database and url.database != ":memory:":
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        arguments = {"timeout": BUSY_SECONDS} if is_sqlite else {}
        self.engine = sa.create_engine(url, connect_args=arguments)
        if is_sqlite:
            sa.event.listen(self.engine, "connect", _tune_sqlite)
        Base.metadata.create_all(self.engine)
        self.session = sessionmaker(self.engine, expire_on_commit=False)

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
                        url=url, articles=0, fetches=0, not_modified=0, failures=0,
                        consecutive_failures=0,
                    )
                    session.add(known[url])
        return [known[url] for url in wanted]

    def feed_read(
        self, url: str, etag: str | None, last_modified: str | None, *, articles: int,
        is_modified: bool, problem: str | None,
    ) -> None:
        """Called when the articles are saved: a worker that dies before asks without the tags."""
        with self.session.begin() as session:
            row = session.get_one(Feed, url)
            row.etag, row.last_modified = etag, last_modified
            row.articles += articles
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

    # -- articles ----------------------------------------------------------------------------------

    def unknown(self, urls: Sequence[str]) -> set[str]:
        """Those of the URLs that no article has."""
        known: set[str] = set()
        with self.session() as session:
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
            session.execute(
                sa.update(Run)
                .where(Run.claim.is_not(None))
                .where(sa.or_(Run.job_id == job_id, Run.started_at < stale))
                .values(claim=None, status=FAILED, completed_at=started,
                        error="the worker died in the middle of this run")
            )
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
            row.claim, row.completed_at = None, ended
            row.status = SUCCESS if error is None else FAILED
            row.duration_ms = round((ended - row.started_at).total_seconds() * 1000)
            row.articles, row.embeddings = articles, embeddings
            row.feeds_failed, row.error = feeds_failed, error
        return self.consecutive_failures()

    def consecutive_failures(self) -> int:
        """Runs that have failed since the last one that succeeded."""
        with self.session() as session:
            last = session.scalar(
                sa.select(sa.func.max(Run.started_at)).where(Run.status == SUCCESS)
            )
            failed = sa.select(sa.func.count()).select_from(Run).where(Run.status == FAILED)
            if last is not None:
                failed = failed.where(Run.started_at > last)
            return int(session.scalar(failed) or 0)

    def run_figures(self) -> dict[str, Any]:
        """R4.4, over all runs that ever were."""
        with self.session() as session:
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
        with self.session() as session:
            return list(session.scalars(
                sa.select(Run).order_by(Run.started_at.desc(), Run.id).limit(count)
            ))


def is_critical(consecutive_failures: int) -> bool:
    """R4.4: critical from three."""
    return consecutive_failures >= FAILURES_CRITICAL


def _tune_sqlite(connection: Any, _record: Any) -> None:
    """Readers do not wait for the writer, and a commit is on the disk's log."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA foreign_keys=ON")
