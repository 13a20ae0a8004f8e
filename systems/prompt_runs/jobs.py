"""The job types: the fan-out of a day, and one run of a prompt at a model.

Owns what Tidemill is asked for and what an attempt's end means for the row. Refuses to know SQL and
the protocol of models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel
from sqlalchemy.orm import Session

from systems.models import Call
from systems.prompt_runs import store
from systems.prompt_runs.asking import Answered, ask
from systems.prompt_runs.data import PromptJob, engine, utc_now
from systems.prompt_runs.settings import JOB_SECONDS, LOST_SECONDS
from tidemill import (
    Backoff,
    Context,
    NonRetryable,
    Request,
    Skip,
    Tick,
    job,
    outbox,
    schedule,
)

FAN_OUT_USER: Final = "system:prompt-runs"
FAN_OUT_TYPE: Final = "prompt_runs.fan_out"
ATTEMPTS: Final = 7  # with their backoff, 2 s to 64 s, they outlast a minute without the model


class Day(BaseModel):
    """A batch: its key, the moment that counts as now, and one prompt or all that are due."""

    batch_key: str
    at: datetime
    prompt_id: int | None = None


class Run(BaseModel):
    """A row of `prompt_jobs`."""

    id: int


def batch_key_of(now: datetime) -> str:
    """The day, in UTC."""
    return now.strftime("%Y-%m-%d")


@job(FAN_OUT_TYPE, queue="prompt-runs-fan-out", timeout_seconds="10min")
async def fan_out(payload: Day, ctx: Context) -> dict[str, Any]:
    """Makes the rows, asks for the job of each that waits, and looks after their ends.

    All of it can be done again: the constraint keeps rows from doubling, ids keep jobs from it, and
    the list that was asked for first counts. So an attempt that dies is made good by the next. A
    run's failure is told by its row and is no failure of the day: all ends are tolerated.
    """
    made = await ctx.step("rows", asyncio.to_thread, _make_rows, payload)
    waiting = await asyncio.to_thread(store.waiting, engine(), payload.batch_key)
    ends = await ctx.gather("runs", list(requests_of(waiting)), tolerate="100%")
    untold = {
        end.job_id: f"{end.status}: {end.error.message if end.error else end.reason}"
        for end in ends if end.status in ("failed", "cancelled", "expired")
    }
    told = await asyncio.to_thread(store.tell_ends, engine(), payload.batch_key, untold)
    ctx.log.info("the day has ended", batch=payload.batch_key, asked=len(ends), told=told)
    succeeded = sum(end.status == "succeeded" for end in ends)
    return {**made, "asked": len(ends), "succeeded": succeeded, "told": told}


def _make_rows(payload: Day) -> dict[str, Any]:
    batch = store.make_batch(engine(), payload.batch_key, payload.at, payload.prompt_id)
    return {"batch_key": payload.batch_key, "prompts": batch.prompts, "made": batch.made}


@schedule("prompt_runs.daily", cron="0 0 * * *", overlap="skip", catch_up="last")
async def daily(tick: Tick, ctx: Context) -> list[Request]:
    """The day's fan-out at 0:00 UTC; after down-time, the last day that was missed."""
    day = Day(batch_key=batch_key_of(tick.scheduled_for), at=tick.scheduled_for)
    return [
        fan_out.request(day, user_id=FAN_OUT_USER, job_id=f"{FAN_OUT_TYPE}@{day.batch_key}")
    ]


@schedule("prompt_runs.give_up", every="1min", overlap="skip")
async def give_up(tick: Tick, ctx: Context) -> dict[str, Any]:
    """A worker that died again and again, or an attempt that took too long, told its row nothing:
    the row failed, and may be run again."""
    lost = await asyncio.to_thread(
        store.give_up, engine(), utc_now() - timedelta(seconds=LOST_SECONDS),
        "its attempt took too long, or its worker died again and again",
    )
    return {"given_up": lost}


def requests_of(rows: Iterable[PromptJob]) -> Iterable[Request]:
    """A request for each row; the same row gives the same request, until it is asked for again."""
    for row in rows:
        yield _request(row)


def _request(row: PromptJob) -> Request:
    priority: Any = row.prompt.priority
    # One job of a row lives at a time, whatever the ids of those that ask for it.
    return run_prompt.request(
        Run(id=row.id), user_id=row.user_id, job_id=row.job_id, batch_id=row.batch_key,
        priority=priority, unique_key=row.key,
    )


def run_again(row_ids: list[int], *statuses: str) -> int:
    """Asks once more for these runs, if they are in one of these states; how many there were.

    The rows and their requests are one transaction; the relay of the web app takes them to Kafka.
    """
    def ask(session: Session, row: PromptJob) -> None:
        outbox.add(session, _request(row))

    return len(store.ask_again(engine(), row_ids, ask, statuses=statuses))


@job(
    "prompt_runs.run",
    queue="prompt-runs",
    max_attempts=ATTEMPTS,
    timeout_seconds=JOB_SECONDS,
    backoff=Backoff.exponential("2s", cap="5min"),
)
async def run_prompt(payload: Run, ctx: Context) -> dict[str, Any]:
    """One run: claim the row, ask the model, keep the answer. One that has ended is skipped."""
    try:
        work = await asyncio.to_thread(store.claim, engine(), payload.id)
    except LookupError as error:
        raise NonRetryable(str(error), code="NO_SUCH_ROW") from None
    if work is None:
        raise Skip("already_ended")
    calls: list[Call] = []
    try:
        # A step: a retry after a failed commit, or a death before it, does not pay for it again.
        stored = await ctx.step("ask", _ask, work, calls)
    except Exception as error:
        is_final = isinstance(error, NonRetryable) or ctx.attempt >= ctx.max_attempts
        message = f"{type(error).__name__}: {error}"
        await asyncio.to_thread(store.fail, engine(), work, message, calls, is_final=is_final)
        raise
    done = Answered.model_validate(stored)
    is_kept = await asyncio.to_thread(
        store.succeed, engine(), work, model_name=done.model, answer=done.value.answer,
        raw=done.text, mentions=done.mentions, calls=done.calls,
    )
    if not is_kept:
        raise Skip("cancelled")
    return {
        "model": done.model, "entities": len(done.value.entities), "cost_usd": done.cost_usd,
        "input_tokens": sum(call.input_tokens for call in done.calls),
        "output_tokens": sum(call.output_tokens for call in done.calls),
    }


async def _ask(work: store.Work, calls: list[Call]) -> dict[str, Any]:
    return (await ask(work.text, work.model, work.fallback, calls)).model_dump(mode="json")


def day_of_today(prompt_id: int | None = None) -> Day:
    """Today's batch."""
    now = utc_now()
    return Day(batch_key=batch_key_of(now), at=now, prompt_id=prompt_id)
