"""Handlers for the worker's integration tests: every kind, every way to end."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

from pydantic import BaseModel

from tidemill import Backoff, Context, NonRetryable, RateLimit, Retry, Skip, job

OUTSIDE_SECONDS = 600.0  # longer than any test


class Greeting(BaseModel):
    name: str


class Note(BaseModel):
    """Where a handler writes down that it ran."""

    folder: str
    seconds: float = 0.0


def note(folder: str, what: str) -> None:
    with Path(folder, what).open("a") as file:
        file.write(f"{os.getpid()}\n")


@job("greet", limits=[RateLimit("10/min", over="delay")], backoff=Backoff.fixed("1s"))
async def greet(payload: Greeting, ctx: Context) -> dict[str, str]:
    return {"hello": payload.name, "key": ctx.idempotency_key}


@job("greet.thread")
def greet_in_thread(payload: Greeting) -> dict[str, str]:
    return {"hello": payload.name}


@job("greet.process", queue="heavy", process=True)
def greet_in_process(payload: Greeting, ctx: Context) -> dict[str, object]:
    print("handlers may print")
    ctx.enqueue("greet", {"name": "child"})
    return {"hello": payload.name, "pid": os.getpid()}


@job("raw")
async def raw(payload: dict[str, object]) -> object:
    return payload


@job("steer")
async def steer(payload: dict[str, str]) -> object:
    match payload["how"]:
        case "retry":
            raise Retry("not yet", after_seconds=7)
        case "give_up":
            raise NonRetryable("no such card", code="CARD_UNKNOWN")
        case "skip":
            raise Skip("nothing new")
        case "exit":
            sys.exit(3)
        case "large":
            return "x" * 1_000_000
        case "odd":
            return object()
        case _:
            raise RuntimeError("a fault of the handler")


@job("sleep")
async def sleep(payload: Note) -> str:
    note(payload.folder, "began")
    await asyncio.sleep(payload.seconds)
    note(payload.folder, "ended")
    return "slept"


@job("sleep.thread")
def sleep_in_thread(payload: Note, ctx: Context) -> str:
    deadline = time.monotonic() + payload.seconds
    while time.monotonic() < deadline and not ctx.cancelled:
        ctx.progress(50, stage="sleeping")
        time.sleep(0.01)
    return "slept"


@job("sleep.process", queue="heavy", process=True)
def sleep_in_process(payload: Note) -> str:
    code = f"import time; time.sleep({OUTSIDE_SECONDS})"
    grandchild = subprocess.Popen([sys.executable, "-c", code])
    Path(payload.folder, "pids").write_text(f"{os.getpid()} {grandchild.pid}")
    try:
        time.sleep(payload.seconds)
    finally:
        note(payload.folder, "unwound")
    return "slept"


@job("stubborn.process", queue="heavy", process=True)
def stubborn_in_process(payload: Note) -> str:
    Path(payload.folder, "pids").write_text(f"{os.getpid()}")
    deadline = time.monotonic() + payload.seconds
    while time.monotonic() < deadline:
        try:
            time.sleep(payload.seconds)
        except BaseException:  # noqa: BLE001  # what a handler must not do, and some do
            note(payload.folder, "refused")
    return "slept"


@job("fork.process", queue="heavy", process=True)
def fork_in_process(payload: Note) -> str:
    if os.fork() == 0:
        raise ValueError("the copy comes back out of the handler")
    time.sleep(0.1)
    return payload.folder


@job("pool.process", queue="heavy", process=True)
def pool_in_process(payload: dict[str, object]) -> int | None:
    copy = multiprocessing.get_context("fork").Process(target=time.sleep, args=(OUTSIDE_SECONDS,))
    copy.start()
    copy.terminate()
    copy.join(20)
    return copy.exitcode


@job("leave.process", queue="heavy", process=True)
def leave_in_process(payload: Note) -> None:
    """Ends itself while a copy of it lives on."""
    if os.fork() == 0:
        time.sleep(120)
        os._exit(0)
    os._exit(3)


@job("exit.in_task")
async def exit_in_task(payload: dict[str, object]) -> None:
    async def leave() -> None:
        sys.exit(3)

    await asyncio.gather(leave())


@job("hang.aside")
async def hang_aside(payload: Note) -> None:
    """Holds a thread of the loop's default pool for ever."""
    await asyncio.to_thread(time.sleep, payload.seconds)


@job("long.text")
async def long_text(payload: dict[str, int]) -> str:
    return "x" * payload["length"]


@job("finish.process", queue="heavy", process=True)
def finish_in_process(payload: Note) -> str:
    note(payload.folder, "began")
    time.sleep(payload.seconds)
    return "finished"


@job("die.process", queue="heavy", process=True)
def die_in_process(payload: dict[str, object]) -> None:
    os._exit(9)
