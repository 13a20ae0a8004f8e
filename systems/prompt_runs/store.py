"""Every change of the rows: making a batch, claiming a run, its end, cancelling, counting.

Owns the transactions: each function is one. Refuses to know Kafka and models: what shall be written
to the outbox in the same transaction is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Engine, Select, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, joinedload

from systems.database import reading
from systems.models import Call
from systems.prompt_runs.data import (
    FAILED,
    PROCESSING,
    QUEUED,
    SKIPPED,
    STATUSES,
    SUCCEEDED,
    EntityMention,
    ModelCall,
    ModelRow,
    Prompt,
    PromptJob,
    Response,
    utc_now,
)

INSERT_ROWS: Final = 500  # of one statement: below every database's bound on parameters


@dataclass(frozen=True, slots=True)
class Work:
    """One claimed run: what to ask, and whom. `attempt` is the claim: the latest one alone ends
    the run, so a worker that was given up and comes back changes nothing."""

    row_id: int
    attempt: int
    prompt_id: int
    text: str
    model: ModelRow
    fallback: ModelRow | None


@dataclass(frozen=True, slots=True)
class Batch:
    """What a fan-out did."""

    made: int
    prompts: int


def make_batch(
    engine: Engine, batch_key: str, now: datetime, prompt_id: int | None = None
) -> Batch:
    """The rows of each due prompt x active model x run, and the prompts' last run, at once.

    A row that is there already stays as it is. `prompt_id`: this prompt alone, due or not.
    """
    with Session(engine, expire_on_commit=False) as session, session.begin():
        prompts = [
            prompt for prompt in session.scalars(select(Prompt).where(Prompt.is_active))
            if (is_due(prompt, now) if prompt_id is None else prompt.id == prompt_id)
        ]
        models = session.scalars(select(ModelRow).where(ModelRow.is_active)).all()
        rows = [
            {
                "prompt_id": prompt.id, "model_id": model.id, "run_index": run,
                "batch_key": batch_key, "status": QUEUED, "attempt_count": 0,
                "scheduled_for": now, "created_at": now,
            }
            for prompt in prompts for model in models for run in range(prompt.runs)
        ]
        made = sum(
            _insert_new(session, rows[at : at + INSERT_ROWS])
            for at in range(0, len(rows), INSERT_ROWS)
        )
        for prompt in prompts:
            prompt.last_run_at = now
        return Batch(made, len(prompts))


def waiting(engine: Engine, batch_key: str) -> list[PromptJob]:
    """All runs of the batch that have not begun."""
    with Session(reading(engine), expire_on_commit=False) as session:
        return list(session.scalars(
            select(PromptJob).options(joinedload(PromptJob.prompt))
            .where(PromptJob.batch_key == batch_key, PromptJob.status == QUEUED)
            .order_by(PromptJob.id)
        ))


def tell_ends(engine: Engine, batch_key: str, ends: Mapping[str, str]) -> int:
    """Runs whose job, by its id, ended without a word to the row: they failed; how many."""
    with Session(engine) as session, session.begin():
        rows = session.scalars(
            select(PromptJob).where(
                PromptJob.batch_key == batch_key, PromptJob.status.in_((QUEUED, PROCESSING))
            )
        ).all()
        lost = [row for row in rows if row.job_id in ends]
        for row in lost:
            row.status, row.finished_at = FAILED, utc_now()
            row.error_message = ends[row.job_id]
        return len(lost)


def is_due(prompt: Prompt, now: datetime) -> bool:
    """Whether `every_days` whole UTC days have begun since the last run."""
    if prompt.last_run_at is None:
        return True
    return prompt.last_run_at.date() + timedelta(days=prompt.every_days) <= now.date()


def _insert_new(session: Session, rows: list[dict[str, Any]]) -> int:
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(PromptJob).values(rows).on_conflict_do_nothing()
    return len(session.scalars(statement.returning(PromptJob.id)).all())


def claim(engine: Engine, row_id: int) -> Work | None:
    """Takes the run, in one statement; None when it has ended already.

    A run that is `processing` is taken again: Tidemill runs one attempt at a time, so its worker
    has died. Raises LookupError for a row that is not there.
    """
    with Session(engine, expire_on_commit=False) as session, session.begin():
        taken = session.execute(
            update(PromptJob)
            .where(PromptJob.id == row_id, PromptJob.status.in_((QUEUED, PROCESSING)))
            .values(
                status=PROCESSING, attempt_count=PromptJob.attempt_count + 1, started_at=utc_now(),
                finished_at=None,
            )
            .returning(PromptJob.attempt_count)
        ).scalar()
        row = session.get(PromptJob, row_id)
        if row is None:
            raise LookupError(f"there is no prompt job {row_id}")
        if taken is None:
            return None
        model = row.model
        fallback = None
        if model.fallback_id is not None:
            fallback = session.get(ModelRow, model.fallback_id)
        return Work(row.id, taken, row.prompt_id, row.prompt.text, model, fallback)


def succeed(
    engine: Engine, work: Work, *, model_name: str, answer: str, raw: str,
    mentions: Sequence[tuple[str, str]], calls: Sequence[Call],
) -> bool:
    """The answer, its mentions, its calls and the state, or none of it; False when it had ended."""
    with Session(engine) as session, session.begin():
        _note_calls(session, work.row_id, calls)
        if not _end(session, work, SUCCEEDED, None):
            return False
        session.add(
            Response(
                prompt_job_id=work.row_id, model_name=model_name, answer=answer, raw=raw,
                created_at=utc_now(),
            )
        )
        dialect = postgresql if engine.dialect.name == "postgresql" else sqlite
        # In one order of names, so that two runs of a prompt never wait for each other in a ring.
        for entity, sentiment in sorted(mentions):
            key = {"prompt_id": work.prompt_id, "entity": entity, "sentiment": sentiment}
            session.execute(
                dialect.insert(EntityMention).values(**key, mentions=1).on_conflict_do_update(
                    index_elements=list(key), set_={"mentions": EntityMention.mentions + 1}
                )
            )
        return True


def fail(
    engine: Engine, work: Work, message: str, calls: Sequence[Call], *, is_final: bool
) -> None:
    """An attempt that failed: its error, and `queued` until the next, or `failed`."""
    with Session(engine) as session, session.begin():
        _note_calls(session, work.row_id, calls)
        _end(session, work, FAILED if is_final else QUEUED, message)


def skip(engine: Engine, row_ids: Sequence[int]) -> list[PromptJob]:
    """Runs that shall not be: those that had not ended, now `skipped`."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        rows = session.scalars(
            select(PromptJob)
            .where(PromptJob.id.in_(row_ids), PromptJob.status.in_((QUEUED, PROCESSING)))
        ).all()
        for row in rows:
            row.status, row.finished_at, row.error_message = SKIPPED, utc_now(), "cancelled"
        return list(rows)


def ask_again(
    engine: Engine, row_ids: Sequence[int], ask: Callable[[Session, PromptJob], object], *,
    statuses: Sequence[str] = (FAILED,),
) -> list[PromptJob]:
    """Runs in one of these states, `queued` now and asked for once more by `ask`, or none of it."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        rows = session.scalars(
            select(PromptJob).options(joinedload(PromptJob.prompt))
            .where(PromptJob.id.in_(row_ids), PromptJob.status.in_(statuses))
            .order_by(PromptJob.id)
        ).all()
        for row in rows:
            row.status, row.finished_at = QUEUED, None
            row.asked_again += 1
            ask(session, row)
        return list(rows)


def give_up(engine: Engine, begun_before: datetime, message: str) -> int:
    """Runs that began so long ago that no attempt of theirs can live: they failed; how many."""
    with Session(engine) as session, session.begin():
        lost = session.scalars(
            update(PromptJob)
            .where(PromptJob.status == PROCESSING, PromptJob.started_at < begun_before)
            .values(status=FAILED, error_message=message, finished_at=utc_now())
            .returning(PromptJob.id)
        ).all()
        return len(lost)


def _end(session: Session, work: Work, status: str, message: str | None) -> bool:
    finished = None if status == QUEUED else utc_now()
    ended = session.execute(
        update(PromptJob)
        .where(
            PromptJob.id == work.row_id, PromptJob.status == PROCESSING,
            PromptJob.attempt_count == work.attempt,
        )
        .values(status=status, error_message=message, finished_at=finished)
        .returning(PromptJob.id)
    ).first()
    return ended is not None


def _note_calls(session: Session, row_id: int, calls: Sequence[Call]) -> None:
    if calls:
        session.execute(
            insert(ModelCall),
            [
                {
                    "prompt_job_id": row_id, "provider": call.provider, "model_name": call.model,
                    "outcome": call.outcome, "input_tokens": call.input_tokens,
                    "output_tokens": call.output_tokens, "cost_usd": call.cost_usd,
                    "duration_ms": call.duration_ms, "asked_at": call.asked_at,
                }
                for call in calls
            ],
        )


# -- looking ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filter:
    """Which runs. None: any."""

    job_id: int | None = None
    batch_key: str | None = None
    prompt_id: int | None = None
    status: str | None = None

    def on(self, statement: Select[Any]) -> Select[Any]:
        """The statement with these conditions."""
        for column, value in (
            (PromptJob.id, self.job_id), (PromptJob.batch_key, self.batch_key),
            (PromptJob.prompt_id, self.prompt_id), (PromptJob.status, self.status),
        ):
            if value is not None:
                statement = statement.where(column == value)
        return statement


def find(engine: Engine, wanted: Filter, at_most: int) -> list[PromptJob]:
    """Runs with prompt and model, the newest first."""
    statement = wanted.on(
        select(PromptJob).options(joinedload(PromptJob.prompt), joinedload(PromptJob.model))
    )
    with Session(reading(engine), expire_on_commit=False) as session:
        newest_first = (PromptJob.created_at.desc(), PromptJob.id.desc())
        return list(session.scalars(statement.order_by(*newest_first).limit(at_most)))


def is_active(engine: Engine, prompt_id: int) -> bool:
    """Whether there is this prompt, and it is asked."""
    with Session(reading(engine)) as session:
        prompt = session.get(Prompt, prompt_id)
        return prompt is not None and prompt.is_active


def ids(engine: Engine, wanted: Filter) -> list[int]:
    """The ids of all these runs."""
    with Session(reading(engine)) as session:
        return list(session.scalars(wanted.on(select(PromptJob.id))))


def counts(engine: Engine, wanted: Filter) -> dict[str, int]:
    """How many of these runs are in each state."""
    status: Any = PromptJob.status
    states: Select[Any] = select(status, func.count()).group_by(status)
    with Session(reading(engine)) as session:
        found: dict[str, int] = {row[0]: row[1] for row in session.execute(wanted.on(states))}
    return {status: found.get(status, 0) for status in STATUSES}


def spending(engine: Engine) -> list[dict[str, Any]]:
    """Calls, tokens, dollars and time by model and outcome."""
    with Session(reading(engine)) as session:
        rows = session.execute(
            select(
                ModelCall.provider, ModelCall.model_name, ModelCall.outcome, func.count(),
                func.sum(ModelCall.input_tokens), func.sum(ModelCall.output_tokens),
                func.sum(ModelCall.cost_usd), func.sum(ModelCall.duration_ms),
            ).group_by(ModelCall.provider, ModelCall.model_name, ModelCall.outcome)
            .order_by(ModelCall.provider, ModelCall.model_name, ModelCall.outcome)
        ).all()
    names = (
        "provider", "model", "outcome", "calls", "input_tokens", "output_tokens", "cost_usd",
        "duration_ms",
    )
    return [dict(zip(names, row, strict=True)) for row in rows]
