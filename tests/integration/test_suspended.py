"""Steps and sleeps on real parts: handlers of all kinds, through kill -9 of ledger and worker."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.checker import Expectations, check_installation
from tests.integration.roles import Roles
from tests.tidy.sources import ROOT
from tests.waiting import wait_until
from tidemill import Client

pytestmark = pytest.mark.timeout(240)
SECONDS = 90.0
PREFIX = "suspended."
NAP = "4s"

MODULE = f'''
from pathlib import Path
from tidemill import Context, job


def load(folder: str, name: str) -> dict[str, str]:
    with Path(folder, name).open("a") as file:
        file.write("x")
    return {{"name": name}}


@job("nap.async")
async def on_loop(payload: dict[str, str], ctx: Context) -> object:
    found = await ctx.step("load", load, payload["folder"], ctx.job_id)
    await ctx.sleep("nap", "{NAP}")
    return [found, ctx.attempt, await ctx.step("after", load, payload["folder"], "after")]


@job("nap.thread")
def on_thread(payload: dict[str, str], ctx: Context) -> object:
    found = ctx.step("load", load, payload["folder"], ctx.job_id)
    ctx.sleep("nap", "{NAP}")
    return [found, ctx.attempt, ctx.step("after", load, payload["folder"], "after")]


@job("nap.much")
async def remembers_much(payload: dict[str, str], ctx: Context) -> object:
    for number in range(40):
        await ctx.step(f"part {{number}}", lambda: "x" * 250_000)
    return await on_loop(payload, ctx)


@job("nap.much_in_process", process=True)
def remembers_much_in_process(payload: dict[str, str], ctx: Context) -> object:
    for number in range(40):
        ctx.step(f"part {{number}}", lambda: "x" * 250_000)
    return on_thread(payload, ctx)


@job("nap.process", process=True)
def in_process(payload: dict[str, str], ctx: Context) -> object:
    found = ctx.step("load", load, payload["folder"], ctx.job_id)
    ctx.sleep("nap", "{NAP}")
    return [found, ctx.attempt, ctx.step("after", load, payload["folder"], "after")]
'''


def test_a_sleep_outlives_its_ledger_and_its_worker(kafka: str, tmp_path: Path) -> None:
    (tmp_path / "naps.py").write_text(MODULE)
    env = {
        **os.environ, "TIDEMILL_KAFKA": kafka, "TIDEMILL_TOPIC_PREFIX": PREFIX,
        "TIDEMILL_NATIVE": "0", "PYTHONPATH": str(ROOT),
    }
    types = ("nap.async", "nap.thread", "nap.process", "nap.much", "nap.much_in_process")
    with ExitStack() as ending, Client(kafka=kafka, topic_prefix=PREFIX) as client:
        roles = Roles(tmp_path, env, ending, command_seconds=SECONDS)
        assert roles.tidemill("topics", "apply").returncode == 0
        roles.begin("ledger", "ledger")
        roles.begin("worker", "worker", "naps.py")
        begun = time.monotonic()
        handles = [
            client.enqueue(name, user_id="u", job_id=name, payload={"folder": str(tmp_path)})
            for name in types
        ]
        # Each has done its step, and with that it is asleep a moment later.
        wait_until(lambda: all((tmp_path / name).exists() for name in types), SECONDS, "no steps")
        for name, words in (("ledger", ("ledger",)), ("worker", ("worker", "naps.py"))):
            process = roles.roles[name].process
            assert process is not None
            process.kill()
            process.wait()
            roles.begin(f"{name} again", *words)
        for name, handle in zip(types, handles, strict=True):
            done = client.wait(handle, timeout=SECONDS)
            assert (done.status, done.attempts) == ("succeeded", 1), done
            assert done.result == [{"name": name}, 1, {"name": "after"}]
        assert time.monotonic() - begun >= 4.0
    report = check_installation(kafka, prefix=PREFIX, expectations=Expectations())
    assert report.is_clean, report.text()
