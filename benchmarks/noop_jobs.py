"""Handlers of the benchmark: a module as a user writes it.

Owns the measured no-op, with a limit on it that is checked for every job and never bites, the jobs
that hold a worker's slots, and the parent of a fan-out. Refuses to know who measures.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from tidemill import Context, RateLimit, Request, job

# The file that lets the holding jobs go on; the benchmark makes it.
GATE_VARIABLE = "TIDEMILL_BENCH_GATE"
# How often a holding job looks for the file: together they cost a fraction of a percent.
GATE_POLL_SECONDS = 0.02
NOOP = "bench.noop"
# Jobs of all measurements are of so many users.
USERS = 1_000


@job(NOOP, limits=[RateLimit("1000/s", by="user", over="delay")])
async def noop(payload: dict[str, Any]) -> None:
    """Nothing, through the whole pipeline."""


@job("bench.hold", timeout_seconds=300)
async def hold(payload: dict[str, Any]) -> None:
    """Keeps a slot until the gate opens."""
    gate = Path(os.environ[GATE_VARIABLE])
    while not gate.exists():  # noqa: ASYNC110, ASYNC240  # another process makes it
        await asyncio.sleep(GATE_POLL_SECONDS)


@job("bench.nap", timeout_seconds=60, max_attempts=5)
async def nap(payload: dict[str, Any]) -> None:
    """Takes `seconds`: it is running when its worker is killed."""
    await asyncio.sleep(float(payload["seconds"]))


@job("bench.fan_out", timeout_seconds=120, max_attempts=1)
async def fan_out(payload: dict[str, Any], ctx: Context) -> int:
    """Asks for `members` no-ops, `parallel` of them at once; how many succeeded."""
    requests = [
        Request(
            type=NOOP, user_id=f"user-{number % USERS}", job_id=f"{payload['tag']}-{number}",
            payload={"number": number},
        )
        for number in range(payload["members"])
    ]
    ends = await ctx.gather("members", requests, parallel=payload["parallel"])
    return sum(end.status == "succeeded" for end in ends)
