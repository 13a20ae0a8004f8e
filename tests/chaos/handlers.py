"""The handlers of the chaos run: every kind, every way to end.

Owns what `EXPECT` tells the checker about them; a test holds both together. What a handler does
depends only on its job and attempt, so a rescue repeats it; what a step returns does not, so that
one which ran again is seen.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import Any, Final
from uuid import uuid4

from tidemill import (
    Backoff,
    Context,
    NonRetryable,
    RateLimit,
    Request,
    Retry,
    SignalTimeout,
    job,
)

QUICK_BACKOFF: Final = Backoff.fixed("200ms")
EXPECT: Final[dict[str, Any]] = {
    "max_attempts": {
        "chaos.noop": 3, "chaos.flaky": 5, "chaos.slow": 3, "chaos.thread": 3, "chaos.process": 3,
        "chaos.skip": 3, "chaos.delay": 3, "chaos.once": 3, "chaos.refuses": 3, "chaos.late": 1,
        "chaos.parent": 3, "chaos.child": 3, "chaos.steps": 5, "chaos.nap": 3,
        "chaos.nap_thread": 3, "chaos.nap_process": 3, "chaos.shared": 3, "chaos.fan": 3,
        "chaos.member": 2, "chaos.asks": 3,
    },
    "limits": {"chaos.skip": [[5, 5_000, "skip"]], "chaos.delay": [[5, 2_000, "delay"]]},
    "children": {"chaos.parent": "child-of-"},
    "tells_steps": [
        "chaos.steps", "chaos.nap", "chaos.nap_thread", "chaos.nap_process", "chaos.shared",
        "chaos.skips", "chaos.fan", "chaos.asks",
    ],
}
"""What the checker is told: attempts and limits by type, and which results tell of their steps."""
STOPS: Final = frozenset({"chaos.steps", "chaos.fan"})
"""Types whose first run may stop behind a step, or with members that failed, for a redrive to go on
with."""
FAN: Final = ".all."
"""In the id of each member of a fan-out."""
ASKED_SECONDS: Final = 6.0  # that a handler waits for its answer
MEMBERS: Final = 8
PARALLEL: Final = 3


def draw(ctx: Context, *salt: object) -> float:
    """A number in [0, 1) that is the same whenever this attempt runs."""
    text = f"{ctx.user_id}/{ctx.job_id}/{salt}"
    return zlib.crc32(text.encode()) / 2**32


@job("chaos.noop")
async def noop(payload: dict[str, Any]) -> dict[str, Any]:
    return payload


@job("chaos.flaky", max_attempts=5, backoff=QUICK_BACKOFF)
async def flaky(payload: dict[str, Any], ctx: Context) -> int:
    chance = draw(ctx, ctx.attempt)
    if chance < 0.2:
        raise RuntimeError(f"attempt {ctx.attempt} of {ctx.job_id} was to fail")
    if chance < 0.4:
        raise Retry(after_seconds=0.3)
    return ctx.attempt


@job("chaos.slow", backoff=QUICK_BACKOFF)
async def slow(payload: dict[str, Any], ctx: Context) -> str:
    seconds = 1.0 + 2.0 * draw(ctx)
    for part in range(4):
        await asyncio.sleep(seconds / 4)
        ctx.progress(25 * (part + 1), stage="sleeping")
    return f"{seconds:.2f} s"


@job("chaos.thread")
def thread(payload: dict[str, Any]) -> str:
    time.sleep(0.01)
    return "from a thread"


@job("chaos.process", process=True, backoff=QUICK_BACKOFF)
def process(payload: dict[str, Any]) -> int:
    return sum(number * number for number in range(20_000))


@job("chaos.skip", limits=[RateLimit("5/5s", by="user", over="skip")])
async def skip(payload: dict[str, Any]) -> str:
    return "within its limit"


@job("chaos.delay", limits=[RateLimit("5/2s", by="user", over="delay")])
async def delay(payload: dict[str, Any]) -> str:
    return "in its turn"


@job("chaos.once")
async def once(payload: dict[str, Any]) -> str:
    await asyncio.sleep(0.3)
    return "alone"


@job("chaos.refuses")
async def refuses(payload: dict[str, Any]) -> None:
    raise NonRetryable("this can never work", code="CANNOT_WORK")


@job("chaos.late", max_attempts=1, timeout_seconds=0.7, process=True)
def late(payload: dict[str, Any]) -> None:
    time.sleep(60)


@job("chaos.parent")
async def parent(payload: dict[str, Any], ctx: Context) -> None:
    ctx.enqueue("chaos.child", {"of": ctx.job_id}, job_id=f"child-of-{ctx.job_id}")


@job("chaos.child")
async def child(payload: dict[str, Any]) -> dict[str, Any]:
    return payload


def token() -> str:
    """Another one each time: a step that ran again would be seen."""
    return uuid4().hex


async def token_async() -> str:
    await asyncio.sleep(0.01)
    return token()


@job("chaos.steps", max_attempts=5, backoff=QUICK_BACKOFF)
async def steps(payload: dict[str, Any], ctx: Context) -> dict[str, dict[str, str]]:
    first = await ctx.step("first", token)
    if draw(ctx, ctx.attempt, ctx.run) < 0.15:
        raise RuntimeError("between two steps")
    if ctx.run == 1 and draw(ctx) < 0.2:
        raise NonRetryable("a redrive goes on behind the first step", code="STOPS")
    second, third = await asyncio.gather(
        ctx.step("second", token_async), ctx.step("third", token)
    )
    return {"steps": {"first": first, "second": second, "third": third}}


@job("chaos.nap", backoff=QUICK_BACKOFF)
async def nap(payload: dict[str, Any], ctx: Context) -> dict[str, dict[str, str]]:
    first = await ctx.step("first", token_async)
    await ctx.sleep("nap", 0.5 + 2.5 * draw(ctx))
    if draw(ctx, ctx.attempt) < 0.1:
        raise RuntimeError("after the nap, which a retry does not take again")
    second = await ctx.step("second", token)
    await ctx.sleep("another", 0.3)
    return {"steps": {"first": first, "second": second}}


@job("chaos.nap_thread", backoff=QUICK_BACKOFF)
def nap_thread(payload: dict[str, Any], ctx: Context) -> dict[str, dict[str, str]]:
    return _nap(ctx, payload.get("seconds"))


@job("chaos.nap_process", process=True, backoff=QUICK_BACKOFF)
def nap_process(payload: dict[str, Any], ctx: Context) -> dict[str, dict[str, str]]:
    return _nap(ctx, None)


def _nap(ctx: Context, seconds: float | None) -> dict[str, dict[str, str]]:
    first = ctx.step("first", token)
    ctx.sleep("nap", 0.5 + draw(ctx) if seconds is None else seconds)
    return {"steps": {"first": first, "second": ctx.step("second", token)}}


@job("chaos.shared", collapse_by="payload.thing", backoff=QUICK_BACKOFF)
async def shared(payload: dict[str, Any], ctx: Context) -> dict[str, dict[str, str]]:
    made = await ctx.step("made", token)
    await ctx.sleep("so that others join", 0.5 + 2 * draw(ctx))
    if draw(ctx, "end") < 0.1:
        raise NonRetryable("those that joined end with it", code="CANNOT_WORK")
    return {"steps": {"made": made}}


@job("chaos.fan", backoff=QUICK_BACKOFF)
async def fan(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    first = await ctx.step("first", token)
    # Half of the members are somebody else's, so of another partition.
    users = [f"user-{int(100 * draw(ctx, n))}" if n % 2 else ctx.user_id for n in range(MEMBERS)]
    wanted = [
        Request(type="chaos.member", user_id=user, payload={"n": n}) for n, user in enumerate(users)
    ]
    ends = await ctx.gather("all", wanted, parallel=PARALLEL, tolerate="30%")
    return {"steps": {"first": first}, "members": [end.status for end in ends]}


@job("chaos.asks", backoff=QUICK_BACKOFF)
async def asks(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    first = await ctx.step("first", token)
    try:
        answer = {"answer": await ctx.wait("answer", timeout=ASKED_SECONDS)}
    except SignalTimeout:
        answer = {}
    if draw(ctx, ctx.attempt) < 0.1:
        raise RuntimeError("after the answer, which a retry gets again")
    return {"steps": {"first": first}, "signals": answer}


@job("chaos.member", max_attempts=2, backoff=QUICK_BACKOFF)
async def member(payload: dict[str, Any], ctx: Context) -> str:
    chance = draw(ctx, ctx.attempt, ctx.run)
    await asyncio.sleep(0.3 * chance)
    if chance < 0.1:
        raise RuntimeError("another attempt may help")
    if chance < 0.25:
        raise NonRetryable("a member fails", code="CANNOT_WORK")
    if chance < 0.4:
        await ctx.sleep("nap", 0.5)
    return token()
