"""The schedules of the chaos run: each way to overlap, most of them with ticks that sleep.

Owns the handlers. `clock_plans` says the same to the checker.
"""

from __future__ import annotations

from uuid import uuid4

from tidemill import Context, Tick, schedule


def token() -> str:
    return uuid4().hex


@schedule("chaos.each", every="1s", overlap="allow", catch_up="all")
async def each(tick: Tick) -> dict[str, str]:
    return {"for": tick.scheduled_for.isoformat()}


@schedule("chaos.skips", every="2s", first="now", overlap="skip")
async def skips(tick: Tick, ctx: Context) -> dict[str, dict[str, str]]:
    first = await ctx.step("first", token)
    await ctx.sleep("longer than the period", 2.5)
    return {"steps": {"first": first}}


@schedule("chaos.queues", every="3s", overlap="queue_all", catch_up="all")
async def queues(tick: Tick, ctx: Context) -> None:
    await ctx.sleep("shorter than the period", 1.0)


@schedule("chaos.one_waits", every="2s", overlap="queue_one", catch_up="none")
async def one_waits(tick: Tick, ctx: Context) -> None:
    await ctx.sleep("longer than the period", 2.5)


@schedule("chaos.gives_way", every="4s", first="now", overlap="cancel_old")
async def gives_way(tick: Tick, ctx: Context) -> None:
    await ctx.sleep("until the next tick", 6.0)
