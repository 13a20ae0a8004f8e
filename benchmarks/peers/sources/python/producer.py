"""The producer process of the Python peers: `producer.py MODULE`.

Owns: the line protocol with the harness (a JSON command a line in, a JSON answer a line out) and
sending at a steady rate. What is sent, and how, is the peer module's `send_many` and `send_one`.
"""

import asyncio
import importlib
import json
import sys
import time
from types import ModuleType
from typing import Any

PACE_TICK_SECONDS = 0.001


async def add(peer: ModuleType, jobs: int) -> dict[str, Any]:
    started = time.monotonic()
    await peer.send_many(jobs)
    return {"seconds": time.monotonic() - started}


async def pace(
    peer: ModuleType, *, rate: int, warmup_seconds: float, seconds: float
) -> dict[str, Any]:
    """Sends `rate` jobs a second; a job's clock starts when it was due, however late it is sent."""
    begin = time.monotonic_ns()
    warmup = round(rate * warmup_seconds)
    jobs = warmup + round(rate * seconds)
    sending: list[asyncio.Task[None]] = []
    sent = 0
    while sent < jobs:
        due = begin + sent * 1_000_000_000 // rate
        if due > time.monotonic_ns():
            await asyncio.sleep(PACE_TICK_SECONDS)
            continue
        sending.append(asyncio.create_task(peer.send_one(0 if sent < warmup else due)))
        await asyncio.sleep(0)
        sent += 1
    await asyncio.gather(*sending)
    return {"sent": sent, "seconds": (time.monotonic_ns() - begin) / 1e9}


async def serve(peer: ModuleType) -> None:
    # Taskiq's broker must be started in the loop that sends; the others have nothing to start.
    if hasattr(peer, "broker"):
        await peer.broker.startup()
    print(json.dumps({"ready": True}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        name = command.pop("do")
        answer = await (add if name == "add" else pace)(peer, **command)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(importlib.import_module(sys.argv[1])))
