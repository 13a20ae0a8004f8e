"""What an attempt that took too long says of where it stood: on the loop, a thread, a child."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.worker_harness import bench_of, pack_of
from tidemill.agents.worker.failure_log import FAILURES, TRACES_KEPT_A_SECOND
from tidemill.agents.worker.stacks import frames_of
from tidemill.agents.worker.traces import TRACE_LENGTH_MAX

LET_GO = threading.Event()
CHILDS = '''
import asyncio, time
from tidemill import job

def waits_deep_inside(seconds):
    time.sleep(seconds)

@job("plain_child", process=True)
def plain_child(payload: dict) -> None:
    waits_deep_inside(60)

@job("busy_child", process=True)
def busy_child(payload: dict) -> None:
    turns = 0
    while True:
        turns += 1

async def awaits_deep_inside():
    await asyncio.sleep(60)

@job("driving_child", process=True)
async def driving_child(payload: dict) -> None:
    await awaits_deep_inside()
'''


async def waits_in_an_inner_call() -> None:
    await asyncio.Event().wait()


async def on_the_loop(payload: dict[str, Any]) -> None:
    secret = "a value that nobody may read"
    await waits_in_an_inner_call()
    del secret


async def behind_a_generator(payload: dict[str, Any]) -> None:
    async def numbers() -> Any:
        yield 1
        await waits_in_an_inner_call()

    async for _ in numbers():
        pass


def on_a_thread(payload: dict[str, Any]) -> None:
    def waits_in_an_inner_function() -> None:
        LET_GO.wait(30)

    waits_in_an_inner_function()


def deep_on_a_thread(payload: dict[str, Any], depth: int = 0) -> None:
    if depth < 300:
        deep_on_a_thread(payload, depth + 1)
    LET_GO.wait(30)


# The child has the real ones.
def plain_child(payload: dict[str, Any]) -> None: ...


def busy_child(payload: dict[str, Any]) -> None: ...


def driving_child(payload: dict[str, Any]) -> None: ...


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    LET_GO.clear()
    FAILURES.tell_rest(is_last=True)
    yield
    LET_GO.set()


@pytest.mark.parametrize(
    ("function", "inner"),
    [
        (on_the_loop, "waits_in_an_inner_call"),
        (behind_a_generator, "behind_a_generator"),
        (on_a_thread, "waits_in_an_inner_function"),
        (deep_on_a_thread, "deep_on_a_thread"),
    ],
)
async def test_the_event_says_where_the_handler_stood(function: Any, inner: str) -> None:
    async with bench_of(function) as bench:
        bench.take(pack_of((function.__name__, {}), timeout_ms=60))
        error = (await bench.last())["error"]
        LET_GO.set()
    assert error["code"] == "TIMEOUT"
    trace = error["trace"]
    assert trace.startswith("Where it stood when its time was over")
    assert f"in {inner}" in trace
    assert Path(__file__).name in trace
    assert "agents/worker/" not in trace
    assert "a value that nobody may read\n" not in trace.replace('secret = "', "")
    assert len(trace) <= TRACE_LENGTH_MAX


@pytest.mark.parametrize(
    ("function", "inner"),
    [
        (plain_child, "waits_deep_inside"), (busy_child, "busy_child"),
        (driving_child, "awaits_deep_inside"),
    ],
)
async def test_a_child_process_says_where_it_stood(
    function: Any, inner: str, tmp_path: Path
) -> None:
    module = tmp_path / "children_that_hang.py"
    module.write_text(CHILDS)
    async with bench_of(function, modules=[str(module)], process=True) as bench:
        await bench.until_free()
        bench.take(pack_of((function.__name__, {}), timeout_ms=300))
        error = (await bench.last())["error"]
    assert error["code"] == "TIMEOUT"
    assert f"in {inner}" in error["trace"]
    assert "agents/worker/" not in error["trace"]


async def test_the_setting_leaves_stacks_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FAILURES, "keeps_traces", False)
    async with bench_of(on_the_loop) as bench:
        bench.take(pack_of(("on_the_loop", {}), timeout_ms=20))
        assert "trace" not in (await bench.last())["error"]


async def test_of_a_storm_only_the_first_keep_all_of_it() -> None:
    count = TRACES_KEPT_A_SECOND + 5
    async with bench_of(on_the_loop, concurrency=count) as bench:
        bench.take(pack_of(*[("on_the_loop", {})] * count, timeout_ms=20))
        traces = [
            (await bench.last(f"j{number}"))["error"]["trace"] for number in range(count)
        ]
    short = [trace for trace in traces if "one of many alike" in trace]
    assert len(short) == 5
    assert all("locks.py:" in trace for trace in short)


async def test_what_is_over_has_no_stack() -> None:
    async def over() -> None:
        return None

    coroutine = over()
    await coroutine
    here = test_what_is_over_has_no_stack.__code__
    assert frames_of(coroutine, here) == []
    assert frames_of(None, here) == []
    assert frames_of(-1, here) == []  # a thread that has ended
    # A thread that does something else by now.
    assert frames_of(threading.get_ident(), on_a_thread.__code__) == []
