"""Jobs of every fate for a first look: what `tidemill dev --demo` runs and asks for.

Owns the handlers and the list of jobs that is asked for. Refuses to know how they are sent
(`tidemill.demo_seeds`). Written as a user would: it imports `tidemill` and nothing else of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from pydantic import BaseModel

from tidemill import (
    Backoff,
    Context,
    NonRetryable,
    RateLimit,
    Request,
    Retry,
    Skip,
    Tick,
    job,
    schedule,
)

GREETINGS: Final = 12
REMINDERS: Final = 5  # of one user; more than LIMITED lets through at once
LIMITED: Final = "2/h"  # long enough that what waits for its limit still waits when one looks
RETRY_SECONDS: Final = 3_600.0  # until the next attempt: the job is still retrying when one looks
EXPORT_PARTS: Final = 60
EXPORT_PART_SECONDS: Final = 1.0  # the export runs for a minute and tells of its progress
LATER: Final = timedelta(hours=6)  # until the scheduled jobs are due
PAUSE: Final = "12h"  # for which the awaiting job sleeps
APPROVAL_WITHIN: Final = "24h"
AWAITS_APPROVAL: Final = ("ada", "demo-refund-awaiting")  # user and id
CANCELLED: Final = ("dan", "demo-greet-cancelled")  # user and id of the job that is cancelled


class Person(BaseModel):
    name: str


class Order(BaseModel):
    order_id: str
    amount: int


class Approval(BaseModel):
    ok: bool


@job("demo.greet", timeout_seconds=30)
async def greet(payload: Person) -> str:
    """Succeeds."""
    return f"Hello, {payload.name}!"


@job("demo.charge", max_attempts=3, backoff=Backoff.fixed("1s"), timeout_seconds=30)
async def charge(payload: Order) -> str:
    """Fails for good: a dead letter that can be redriven."""
    if payload.amount > 100:
        raise NonRetryable("the bank says no", code="CARD_DECLINED")
    return f"{payload.order_id} is paid"


@job("demo.flaky", max_attempts=5, backoff=Backoff.fixed("1s"), timeout_seconds=30)
async def flaky(payload: Order, ctx: Context) -> str:
    """Succeeds at its third attempt."""
    if ctx.attempt < 3:
        raise Retry("the shop is busy", after_seconds=1, code="SHOP_BUSY")
    return f"{payload.order_id} went through at attempt {ctx.attempt}"


@job("demo.fetch", max_attempts=24, timeout_seconds=30)
async def fetch(payload: Person) -> None:
    """Waits an hour for its next attempt, again and again."""
    raise Retry(
        f"the server of {payload.name} is down", after_seconds=RETRY_SECONDS, code="SERVER_DOWN"
    )


@job("demo.remind", limits=[RateLimit(LIMITED, by="user", over="delay")], timeout_seconds=30)
async def remind(payload: Person) -> str:
    """Runs twice an hour for each user; the rest waits."""
    return f"{payload.name} was reminded"


@job("demo.digest", timeout_seconds=30)
async def digest(payload: Person) -> None:
    """Finds that there is nothing to do."""
    raise Skip("nothing_new")


@job("demo.export", timeout_seconds=300)
async def export(payload: Person, ctx: Context) -> int:
    """Runs for a minute and tells how far it is."""
    for part in range(EXPORT_PARTS):
        ctx.progress(100 * part / EXPORT_PARTS, stage="export", message=f"part {part + 1}")
        await asyncio.sleep(EXPORT_PART_SECONDS)
    return EXPORT_PARTS


def greeting_of(name: str) -> str:
    return f"Hello, {name}!"


@job("demo.trial", timeout_seconds=30)
async def trial(payload: Person, ctx: Context) -> list[str]:
    """Awaits: it does a step, sleeps for half a day without a slot, and goes on where it was."""
    welcome = await ctx.step("welcome", greeting_of, payload.name)
    await ctx.sleep("half a day", PAUSE)
    return [welcome, await ctx.step("ask", greeting_of, f"{payload.name}, how was it")]


@job("demo.refund", timeout_seconds=30)
async def refund(payload: Order, ctx: Context) -> str:
    """Awaits a person's approval, a day at most and without a slot: `tidemill signal` gives it."""
    approval = await ctx.wait("approval", Approval, timeout=APPROVAL_WITHIN)
    return f"{payload.order_id} is {'paid back' if approval.ok else 'not paid back'}"


@schedule("demo.clock", every="1min", first="now", overlap="skip")
async def clock(tick: Tick) -> dict[str, str]:
    """The schedule asks for this job every minute while the demo runs."""
    return {"scheduled_for": tick.scheduled_for.isoformat()}


def seeds(at: datetime) -> Iterator[Request]:
    """One job or more of every fate, before `CANCELLED` is cancelled. The same instant gives the
    same requests, ids and all."""
    for number in range(GREETINGS):
        yield greet.request(
            Person(name=f"visitor {number + 1}"), user_id=f"visitor-{number % 4 + 1}",
            job_id=f"demo-greet-{number + 1}",
        )
    yield charge.request(Order(order_id="o1", amount=20), user_id="ada", job_id="demo-charge-paid")
    yield charge.request(
        Order(order_id="o2", amount=5_000), user_id="ada", job_id="demo-charge-dead"
    )
    yield flaky.request(Order(order_id="o3", amount=3), user_id="bob", job_id="demo-flaky")
    yield fetch.request(Person(name="bob"), user_id="bob", job_id="demo-fetch-retrying")
    for number in range(REMINDERS):
        yield remind.request(
            Person(name="cleo"), user_id="cleo", job_id=f"demo-remind-{number + 1}"
        )
    yield digest.request(Person(name="dan"), user_id="dan", job_id="demo-digest-skipped")
    yield export.request(Person(name="eve"), user_id="eve", job_id="demo-export-running")
    yield greet.request(
        Person(name="tomorrow"), user_id="dan", job_id="demo-greet-scheduled", run_at=at + LATER
    )
    yield trial.request(Person(name="finn"), user_id="finn", job_id="demo-trial-awaiting")
    user_id, job_id = AWAITS_APPROVAL
    yield refund.request(Order(order_id="o1", amount=20), user_id=user_id, job_id=job_id)
    user_id, job_id = CANCELLED
    yield greet.request(
        Person(name="nobody"), user_id=user_id, job_id=job_id, run_at=at + LATER
    )
    yield greet.request(
        Person(name="too late"), user_id="eve", job_id="demo-greet-expired",
        run_at=at + LATER, expires_at=at + timedelta(seconds=2),
    )
