"""The jobs of the scenarios that `Engine` and the real engine must tell alike.

Each behaves by its payload alone, so that it does the same in a worker and in a test's process.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel

from tidemill import (
    Backoff,
    Concurrency,
    Context,
    NonRetryable,
    RateLimit,
    Request,
    Retry,
    SignalTimeout,
    Skip,
    Tick,
    job,
    schedule,
)

SOON = Backoff.fixed("200ms")


class Amount(BaseModel):
    amount: int


@job("story.act", backoff=SOON, max_attempts=3)
async def act(payload: dict[str, Any], ctx: Context) -> Any:
    """`do`: what it does in each of its attempts."""
    acts = payload.get("do", ["return"])
    match acts[min(ctx.attempt, len(acts)) - 1]:
        case "retry":
            raise Retry("again", code="AGAIN")
        case "retry_in":
            raise Retry("later", after_seconds=0.3)
        case "retry_far":
            raise Retry("much later", after_seconds=60)
        case "error":
            raise RuntimeError("no idea")
        case "never":
            raise NonRetryable("no", code="NO")
        case "skip":
            raise Skip("nothing_new")
        case "sleep":
            await asyncio.sleep(payload["seconds"])
        case "progress":
            ctx.progress(50, stage="half")
            await asyncio.sleep(1.2)
        case "children":
            ctx.enqueue("story.act", {}, job_id=f"{ctx.job_id}.a")
            ctx.enqueue("story.act", {"do": ["never"]}, job_id=f"{ctx.job_id}.b")
        case "big":
            return "x" * 1_000_000
        case "odd":
            return {"at": object()}
    return {"attempt": ctx.attempt}


@job("story.thread", backoff=SOON)
def in_thread(payload: dict[str, Any], ctx: Context) -> int:
    if ctx.attempt < payload["attempts"]:
        raise ValueError("not yet")
    return ctx.attempt


@job("story.process", process=True)
def in_process(payload: dict[str, Any], ctx: Context) -> str:
    return ctx.job_id


@job("story.pay")
async def pay(payload: Amount) -> int:
    return payload.amount


@job("story.brief", timeout_seconds=1, max_attempts=2, backoff=SOON)
async def brief(payload: dict[str, Any], ctx: Context) -> str:
    if ctx.attempt <= payload["slow"]:
        await asyncio.sleep(30)
    return "in time"


@job("story.delayed", limits=[RateLimit("1/2s", over="delay")])
async def delayed(payload: dict[str, Any]) -> None: ...


@job("story.skipped", limits=[RateLimit("1/h", over="skip")])
async def skipped(payload: dict[str, Any]) -> None: ...


@job("story.alone", limits=[Concurrency(1)])
async def alone(payload: dict[str, Any]) -> None:
    await asyncio.sleep(payload["seconds"])


@job("story.suspends")
async def suspends(payload: dict[str, Any], ctx: Context) -> list[int]:
    first = await ctx.step("first", len, "a")
    await ctx.sleep("pause", 1)
    second = await ctx.step("second", len, "ab")
    return [first, second]


@job("story.suspends_in_thread")
def suspends_in_thread(payload: dict[str, Any], ctx: Context) -> list[int]:
    first = ctx.step("first", len, "a")
    ctx.sleep("pause", payload.get("seconds", 1))
    return [first, ctx.step("second", len, "ab")]


@job("story.member")
async def member(payload: dict[str, Any], ctx: Context) -> int:
    if payload.get("fails") and ctx.run == 1:
        raise NonRetryable("not in the first run", code="BROKEN")
    if payload.get("seconds"):
        await asyncio.sleep(payload["seconds"])
    return int(payload["n"])


def members(payload: dict[str, Any], ctx: Context) -> list[Request]:
    return [
        Request(
            type="story.member", user_id=ctx.user_id,
            payload={"n": number, "fails": number in payload.get("failing", ()),
                     "seconds": payload.get("seconds", 0)},
        )
        for number in range(payload["members"])
    ]


@job("story.gathers")
async def gathers(payload: dict[str, Any], ctx: Context) -> list[Any]:
    ends = await ctx.gather(
        "runs", members(payload, ctx), parallel=1, tolerate=payload.get("tolerate")
    )
    return [[end.job_id, end.status.value, end.result] for end in ends]


@job("story.gathers_in_thread")
def gathers_in_thread(payload: dict[str, Any], ctx: Context) -> list[Any]:
    ends = ctx.gather("runs", members(payload, ctx), 1, payload.get("tolerate"))
    return [[end.job_id, end.status.value, end.result] for end in ends]


@job("story.waits")
async def waits(payload: dict[str, Any], ctx: Context) -> list[Any]:
    first = await ctx.step("first", len, "a")
    try:
        found = await ctx.wait("go", Amount, timeout=payload.get("seconds", 3600))
    except SignalTimeout:
        return [first, "late", await ctx.step("second", len, "ab")]
    return [first, found.amount]


@job("story.waits_in_thread")
def waits_in_thread(payload: dict[str, Any], ctx: Context) -> Any:
    return ctx.wait("go", timeout=payload.get("seconds"))


@job("story.waits_in_process", process=True)
def waits_in_process(payload: dict[str, Any], ctx: Context) -> int:
    found: Amount = ctx.wait("go", Amount)
    return found.amount


@job("story.swallows")
async def swallows(payload: dict[str, Any], ctx: Context) -> str:
    try:
        await ctx.sleep("pause", 1)
    except BaseException:  # noqa: BLE001  # the mistake itself
        return "swallowed"
    return "slept"


@job("story.twice")
async def twice(payload: dict[str, Any], ctx: Context) -> None:
    await ctx.step("same", len, "a")
    await ctx.step("same", len, "a")


@job("story.shared", collapse_by="payload.thing")
async def shared(payload: dict[str, Any]) -> Any:
    await asyncio.sleep(payload["seconds"])
    return payload["thing"]


# Periods and runs are seconds apart, so that a busy machine tells no other story.


@schedule("story.often", every="4s", first="now")
@schedule("story.by_cron", cron="*/4 * * * * *", zone="Europe/Berlin")
async def often(tick: Tick, ctx: Context) -> dict[str, Any]:
    return {"at": tick.scheduled_for.isoformat(), "attempt": ctx.attempt}


@schedule("story.skips", every="4s", first="now", overlap="skip")
@schedule("story.queues", every="4s", first="now", overlap="queue_one")
@schedule("story.cancels", every="4s", first="now", overlap="cancel_old")
async def long(tick: Tick) -> None:
    await asyncio.sleep(6)


@schedule("story.catches_up_last", every="4s", first="now", catch_up="last")
@schedule("story.catches_up_all", every="4s", first="now", catch_up="all", overlap="allow")
async def quick(tick: Tick) -> bool:
    return tick.is_catch_up
