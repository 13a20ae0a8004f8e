"""The handlers of the chaos run: every kind, every way to end.

Owns what `EXPECT` tells the checker about them; a test holds both together. What a handler does
depends only on its job and attempt, so a rescue repeats it.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import Any, Final

from tidemill import Backoff, Context, NonRetryable, RateLimit, Retry, job

QUICK_BACKOFF: Final = Backoff.fixed("200ms")
EXPECT: Final[dict[str, Any]] = {
    "max_attempts": {
        "chaos.noop": 3, "chaos.flaky": 5, "chaos.slow": 3, "chaos.thread": 3, "chaos.process": 3,
        "chaos.skip": 3, "chaos.delay": 3, "chaos.once": 3, "chaos.refuses": 3, "chaos.late": 1,
        "chaos.parent": 3, "chaos.child": 3,
    },
    "limits": {"chaos.skip": [[5, 5_000, "skip"]], "chaos.delay": [[5, 2_000, "delay"]]},
    "children": {"chaos.parent": "child-of-"},
}
"""What the checker is told: attempts and limits by type."""


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
