"""Jobs that were rescued three times run in a process of their own: a killer ends itself alone."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_suspects import rescued
from tests.unit.worker_harness import Bench, bench_of, until
from tidemill.agents.worker import apart
from tidemill.agents.worker.suspects import APART_FROM_RESCUES

MODULE = """
import asyncio
import os
import signal
import time
from tidemill import Context, job

def act(payload):
    if payload.get("how") == "exit":
        os._exit(13)
    if payload.get("how") == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if payload.get("how") == "raise":
        raise ValueError("no")
    return os.getpid()

@job("in_loop")
async def in_loop(payload: dict) -> int:
    if payload.get("how") == "hang":
        await asyncio.sleep(600)
    await asyncio.sleep(0)
    return act(payload)

@job("in_thread")
def in_thread(payload: dict) -> int:
    if payload.get("how") == "hang":
        time.sleep(600)
    return act(payload)

@job("in_child", process=True)
def in_child(payload: dict) -> int:
    return act(payload)
"""


async def in_loop(payload: dict[str, Any]) -> int:
    return os.getpid()


def in_thread(payload: dict[str, Any]) -> int:
    return os.getpid()


def in_child(payload: dict[str, Any]) -> int:
    return os.getpid()


KINDS = {"in_loop": in_loop, "in_thread": in_thread}


@asynccontextmanager
async def worker(folder: Path, *functions: Any, **options: Any) -> AsyncIterator[Bench]:
    module = folder / "acts_of_test.py"
    module.write_text(MODULE)
    async with bench_of(*functions, modules=[str(module)], **options) as bench:
        yield bench


@pytest.mark.parametrize(("how", "cause"), [("exit", "exit code 13"), ("kill", "SIGKILL")])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_killer_ends_itself_alone_and_an_innocent_beside_it_ends_well(
    kind: str, how: str, cause: str, tmp_path: Path
) -> None:
    async with worker(tmp_path, KINDS[kind]) as bench:
        before = bench.executor.kinds()
        bench.take(rescued(
            (kind, {"how": how}, APART_FROM_RESCUES), (kind, {}, APART_FROM_RESCUES),
            (kind, {"how": "raise"}, APART_FROM_RESCUES), (kind, {}, APART_FROM_RESCUES - 1),
        ))
        assert bench.executor.kinds() == before  # nobody else waits for them
        lost = (await bench.last("j0"))["error"]
        assert (lost["code"], lost["retryable"]) == ("WORKER_LOST", False)
        assert cause in lost["message"]
        assert (await bench.last("j1"))["result"] != os.getpid()
        assert (await bench.last("j2"))["error"]["retryable"]
        assert (await bench.last("j3"))["result"] == os.getpid()
        assert bench.kinds("j0") == ["started", "failed"]
        assert bench.executor.running == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_apart_too_it_has_a_time_out_and_can_be_cancelled(kind: str, tmp_path: Path) -> None:
    async with worker(tmp_path, KINDS[kind]) as bench:
        bench.take(rescued((kind, {"how": "hang"}, APART_FROM_RESCUES)))
        await until(lambda: bench.executor.running)
        bench.executor.cancel("u", "j0", 1, 5)
        assert (await bench.last())["error"]["code"] == "CANCELLED"
        assert bench.executor.running == 0


async def test_a_process_handler_is_apart_already(tmp_path: Path) -> None:
    async with worker(tmp_path, in_child, process=True) as bench:
        await bench.until_free()
        bench.take(rescued(("in_child", {"how": "exit"}, APART_FROM_RESCUES)))
        assert (await bench.last())["error"]["code"] == "PROCESS_DIED"
        assert bench.executor._apart.lanes == []


async def test_its_processes_end_when_nobody_has_come_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "IDLE_SECONDS", 0.0)
    async with worker(tmp_path, in_thread) as bench:
        for _ in range(2):
            bench.take(rescued(("in_thread", {}, APART_FROM_RESCUES)))
            count = len(bench.outcomes)
            await until(lambda count=count: len(bench.outcomes) == count + 2)  # type: ignore[misc]
            [pid] = {end["result"] for end in bench.outcomes[count:] if "result" in end}
            await until(lambda: not bench.executor._apart.lanes)
            await until(lambda pid=pid: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]


async def test_a_stop_gives_back_what_runs_apart(tmp_path: Path) -> None:
    async with worker(tmp_path, in_thread) as bench:
        bench.take(rescued(("in_thread", {"how": "hang"}, APART_FROM_RESCUES)))
        await until(lambda: bench.executor.running)
        await bench.executor.stop(0)
        assert (await bench.last())["reason"] == "interrupted"
