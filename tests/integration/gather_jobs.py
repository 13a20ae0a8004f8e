"""Jobs for `test_gather`: parents of every kind of handler, and their members.

Owns the handlers. Refuses to check anything: each run of a member leaves a letter in a file.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tidemill import Context, NonRetryable, Request, job
from tidemill.errors import MembersFailed


@job("one")
async def one(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Counts its runs; fails until the folder has the file `mended`."""
    folder = Path(payload["folder"])
    with (folder / ctx.job_id).open("a") as file:
        file.write("x")
    if payload.get("fails") and not (folder / "mended").exists():
        raise NonRetryable("not yet", code="BROKEN")
    while payload.get("waits") and not ctx.cancelled:  # noqa: ASYNC110  # as a handler looks
        await asyncio.sleep(0.02)
    return {"n": payload["n"], "more": "y" * payload.get("returns", 0)}


def asked(payload: dict[str, Any], ctx: Context) -> list[Request]:
    failing = payload.get("failing", 0)
    return [
        Request(
            type="one", user_id=ctx.user_id if number % 2 else f"{ctx.user_id}-{number}",
            payload={
                "n": number, "folder": payload["folder"], "fails": number < failing,
                "waits": payload.get("waits", False), "returns": payload.get("returns", 0),
                "more": "x" * payload.get("size", 0),
            },
        )
        for number in range(payload["count"])
    ]


def seen(ends: list[Any]) -> list[list[Any]]:
    return [[end.job_id, end.status, end.result and end.result["n"]] for end in ends]


@job("fan.async")
async def on_loop(payload: dict[str, Any], ctx: Context) -> Any:
    return seen(await ctx.gather(
        "runs", asked(payload, ctx), parallel=payload.get("parallel"),
        tolerate=payload.get("tolerate"),
    ))


@job("fan.thread")
def on_thread(payload: dict[str, Any], ctx: Context) -> Any:
    return seen(ctx.gather(
        "runs", asked(payload, ctx), payload.get("parallel"), payload.get("tolerate")
    ))


@job("fan.process", process=True)
def in_process(payload: dict[str, Any], ctx: Context) -> Any:
    return seen(ctx.gather(
        "runs", asked(payload, ctx), payload.get("parallel"), payload.get("tolerate")
    ))


@job("fan.catches")
async def catches(payload: dict[str, Any], ctx: Context) -> Any:
    try:
        await ctx.gather("runs", asked(payload, ctx))
    except MembersFailed as error:
        return seen(error.failed)
    return None


@job("fan.twice")
async def twice(payload: dict[str, Any], ctx: Context) -> Any:
    """Two gathers, one after the other, and a step between them."""
    first = await ctx.gather("first", asked(payload, ctx))
    total = await ctx.step("sum", sum, [end.result["n"] for end in first])
    second = await ctx.gather("second", asked({**payload, "count": total}, ctx))
    return [len(first), total, len(second)]
