"""What the system stores: prompts, models, one row a run, answers, mentions, calls.

Owns the tables and the engine. The unique constraint on (prompt, model, run, batch) is what makes
asking again harmless, however much later. The outbox is a table beside them. Refuses to know what a
job does, and the protocol of models.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    DateTime,
    Engine,
    ForeignKey,
    Index,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

from systems.database import open_engine
from systems.prompt_runs.settings import database_url
from tidemill import outbox

QUEUED, PROCESSING, SUCCEEDED, FAILED, SKIPPED = STATUSES = (
    "queued", "processing", "succeeded", "failed", "skipped",
)


def utc_now() -> datetime:
    """The clock of this system's rows."""
    return datetime.now(UTC)


class Instant(TypeDecorator[datetime]):
    """A moment in UTC; SQLite forgets the zone, so it is put back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """All tables."""


class Prompt(Base):
    """A question that is asked every `every_days` days, `runs` times at each active model."""

    __tablename__ = "prompts"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(Text)
    runs: Mapped[int] = mapped_column(default=1)
    every_days: Mapped[int] = mapped_column(default=1)
    priority: Mapped[str] = mapped_column(String(10), default="medium")
    is_active: Mapped[bool] = mapped_column(default=True)
    last_run_at: Mapped[datetime | None] = mapped_column(Instant, default=None)


class ModelRow(Base):
    """A model: its provider (local, openai, openrouter), its price, and who answers in its place.

    Prices are US dollars for a million tokens; None: not known. `fallback_id` is asked when an
    answer does not fit the schema.
    """

    __tablename__ = "models"

    id: Mapped[int] = mapped_column(primary_key=True)
    provider: Mapped[str] = mapped_column(String(20))
    name: Mapped[str] = mapped_column(String(200))
    input_usd: Mapped[float | None] = mapped_column(default=None)
    output_usd: Mapped[float | None] = mapped_column(default=None)
    fallback_id: Mapped[int | None] = mapped_column(ForeignKey("models.id"), default=None)
    is_active: Mapped[bool] = mapped_column(default=True)


class PromptJob(Base):
    """One run of a prompt at a model: its state as the application's users see it.

    `asked_again` counts how often somebody asked for it after its batch was made; each time is a
    job with an id of its own, and the engine lets one of a row live at a time (`unique_key`).
    """

    __tablename__ = "prompt_jobs"
    __table_args__ = (
        UniqueConstraint("prompt_id", "model_id", "run_index", "batch_key"),
        Index("prompt_jobs_batch_status", "batch_key", "status"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompts.id"), index=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    run_index: Mapped[int]
    batch_key: Mapped[str] = mapped_column(String(40))
    status: Mapped[str] = mapped_column(String(12), default=QUEUED, index=True)
    error_message: Mapped[str | None] = mapped_column(Text, default=None)
    attempt_count: Mapped[int] = mapped_column(default=0)
    asked_again: Mapped[int] = mapped_column(default=0)
    scheduled_for: Mapped[datetime] = mapped_column(Instant, index=True)
    started_at: Mapped[datetime | None] = mapped_column(Instant, default=None)
    finished_at: Mapped[datetime | None] = mapped_column(Instant, default=None)
    created_at: Mapped[datetime] = mapped_column(Instant)

    prompt: Mapped[Prompt] = relationship()
    model: Mapped[ModelRow] = relationship()

    @property
    def key(self) -> str:
        """The row's key as one text."""
        return f"{self.batch_key}.{self.prompt_id}.{self.model_id}.{self.run_index}"

    @property
    def job_id(self) -> str:
        """The Tidemill job that was asked for last: the same until somebody asks again."""
        return self.job_ids[-1]

    @property
    def job_ids(self) -> list[str]:
        """All jobs that were asked for."""
        return [self.key, *(f"{self.key}.again{n + 1}" for n in range(self.asked_again))]

    @property
    def user_id(self) -> str:
        """Whose job it is: prompts take turns, and each has its own place in the log."""
        return f"prompt:{self.prompt_id}"


class Response(Base):
    """The answer of a run. `model_name` is whose it is, the fallback's perhaps."""

    __tablename__ = "responses"

    prompt_job_id: Mapped[int] = mapped_column(ForeignKey("prompt_jobs.id"), primary_key=True)
    model_name: Mapped[str] = mapped_column(String(200))
    answer: Mapped[str] = mapped_column(Text)
    raw: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Instant)


class EntityMention(Base):
    """How often answers to a prompt named an entity, by sentiment."""

    __tablename__ = "entity_mentions"

    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompts.id"), primary_key=True)
    entity: Mapped[str] = mapped_column(String(200), primary_key=True)
    sentiment: Mapped[str] = mapped_column(String(10), primary_key=True)
    mentions: Mapped[int]


class ModelCall(Base):
    """One call of a model, failed ones too. `cost_usd` None: the price is not known."""

    __tablename__ = "model_calls"

    id: Mapped[int] = mapped_column(primary_key=True)
    prompt_job_id: Mapped[int] = mapped_column(ForeignKey("prompt_jobs.id"), index=True)
    provider: Mapped[str] = mapped_column(String(20))
    model_name: Mapped[str] = mapped_column(String(200))
    outcome: Mapped[str] = mapped_column(String(64))
    input_tokens: Mapped[int]
    output_tokens: Mapped[int]
    cost_usd: Mapped[float | None]
    duration_ms: Mapped[int]
    asked_at: Mapped[datetime] = mapped_column(Instant)


outbox.attach(Base.metadata)


@cache
def engine_of(url: str) -> Engine:
    """The engine of an address, one a process, its tables made."""
    engine = open_engine(url)
    Base.metadata.create_all(engine)
    return engine


def engine() -> Engine:
    """The engine of the settings."""
    return engine_of(database_url())
