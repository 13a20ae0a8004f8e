"""A child of `process=True` gets folder, path, environment and log form of the worker's start.

What user code has done to the worker's process meanwhile must not matter.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.worker_harness import Bench, handlers_of, pack_of
from tidemill.agents.worker import process_lane
from tidemill.agents.worker.executor import Executor
from tidemill.agents.worker.module_names import LoadPlan, plan_modules
from tidemill.agents.worker.writer import MemorySink, OutcomeWriter

MODULE = """
import logging, os, sys
import beside
from tidemill import job

WORD = os.environ.pop("TIDEMILL_TEST_WORD")

@job("look", process=True)
def look(payload, ctx):
    logging.getLogger("mine").warning("said by a child")
    ctx.log.info("said by the context")
    return {"folder": os.getcwd(), "word": WORD, "beside": beside.WORD,
            "path": [entry for entry in sys.path if "handlers_of_test" in entry],
            "pythonpath": os.environ.get("PYTHONPATH")}
"""


def look(payload: dict[str, Any], ctx: Any) -> None:
    """Stands for the handler in the worker, where it never runs."""


def worker_of(plan: LoadPlan) -> tuple[Executor, Bench]:
    """A worker with one process slot, whose children load these modules."""
    sink = MemorySink()
    loop = asyncio.get_running_loop()
    writer = OutcomeWriter(sink, worker_id="w", incarnation=7, loop=loop)
    executor = Executor(
        handlers_of(look, process=True), writer, concurrency=1, threads=1, processes=1,
        modules=plan,
    )
    bench = Bench(executor, writer, sink)
    return executor, bench



async def test_children_get_what_the_worker_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "handlers_of_test"
    home.mkdir()
    (home / "inner.py").write_text(MODULE)
    (home / "beside.py").write_text("WORD = 'hi'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIDEMILL_TEST_WORD", "told")
    monkeypatch.setattr(sys, "path", list(sys.path))
    plan = plan_modules(["handlers_of_test/inner.py"])
    # All of this is what handlers, or modules at their import, may do to the worker.
    monkeypatch.chdir("/")
    monkeypatch.delenv("TIDEMILL_TEST_WORD")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr("tidemill.agents.logging._words", "json:info")
    executor, bench = worker_of(plan)
    try:
        await bench.until_free()
        bench.take(pack_of(("look", {})))
        end = await bench.last()
    finally:
        monkeypatch.undo()
        await executor.stop(0)
    assert end["result"] == {
        "folder": str(tmp_path), "word": "told", "beside": "hi", "path": [str(home)],
        "pythonpath": os.environ.get("PYTHONPATH"),
    }
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    said = {line["event"]: line for line in lines}
    assert said["said by a child"]["role"] == "worker"
    assert said["said by the context"]["job_id"] == "j0"


PLAIN = """
from tidemill import job

@job("look", process=True)
def look(payload):
    return "seen"
"""

BROKEN: dict[str, list[tuple[str, None]]] = {
    "json": [("json.dumps", None), ("json.loads", None), ("json.JSONEncoder", None)],
    "subprocess": [("subprocess.Popen", None)],
    "interpreter": [("sys.executable", None)],
    "streams": [("sys.stdout", None), ("sys.stderr", None)],
}


async def result_of_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "plain.py").write_text(PLAIN)
    monkeypatch.chdir(tmp_path)
    plan = plan_modules(["plain.py"])
    executor, bench = worker_of(plan)
    try:
        await bench.until_free()
        bench.take(pack_of(("look", {})))
        return (await bench.last())["result"]
    finally:
        await executor.stop(0)


@pytest.mark.parametrize("name", BROKEN)
async def test_children_start_whatever_a_handler_has_broken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        for target, value in BROKEN[name]:
            broken.setattr(target, value)
        result = await result_of_a_child(tmp_path, monkeypatch)
    assert result == "seen"


@pytest.mark.parametrize("error", [OSError(11, "no process"), TypeError("broken"), KeyError(1)])
async def test_a_slot_outlives_any_start_that_fails(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, errors = process_lane.start_child, [error, error]

    async def start(modules: LoadPlan) -> process_lane.ChildProcess:
        if errors:
            raise errors.pop()
        return await real(modules)

    monkeypatch.setattr(process_lane, "start_child", start)
    monkeypatch.setattr(process_lane, "RESTART_SECONDS", (0.0,))
    assert await result_of_a_child(tmp_path, monkeypatch) == "seen"
    assert errors == []
