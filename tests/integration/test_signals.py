"""Signals on real parts: handlers of all kinds and all doors, through kill -9 around a signal."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.checker import Expectations, check_installation
from tests.integration.roles import Roles
from tests.tidy.sources import ROOT
from tests.waiting import wait_until
from tidemill import Client
from tidemill.answers import AnswerTimeout, CommandAnswer, CommandReceipt
from tidemill.handles import JobHandle

pytestmark = pytest.mark.timeout(240)
SECONDS = 90.0
PREFIX = "signals."

MODULE = '''
from pathlib import Path
from pydantic import BaseModel
from tidemill import Context, SignalTimeout, job


class Approval(BaseModel):
    by: str


def note(folder: str, name: str) -> str:
    with Path(folder, name).open("a") as file:
        file.write("x")
    return name


@job("go.async")
async def on_loop(payload: dict[str, str], ctx: Context) -> object:
    await ctx.step("begun", note, payload["folder"], ctx.job_id)
    found = await ctx.wait("go", Approval, timeout="1h")
    return [found.by, ctx.attempt, await ctx.step("after", note, payload["folder"], "after")]


@job("go.thread")
def on_thread(payload: dict[str, str], ctx: Context) -> object:
    ctx.step("begun", note, payload["folder"], ctx.job_id)
    found = ctx.wait("go", Approval)
    return [found.by, ctx.attempt, ctx.step("after", note, payload["folder"], "after")]


@job("go.process", process=True)
def in_process(payload: dict[str, str], ctx: Context) -> object:
    ctx.step("begun", note, payload["folder"], ctx.job_id)
    found = ctx.wait("go", Approval)
    return [found.by, ctx.attempt, ctx.step("after", note, payload["folder"], "after")]


@job("go.late")
async def late(payload: dict[str, str], ctx: Context) -> object:
    try:
        await ctx.wait("go", timeout=1)
    except SignalTimeout:
        return "late"
    return "in time"
'''
TYPES = ("go.async", "go.thread", "go.process")


class Stand:
    """A ledger, a worker, a client."""

    def __init__(self, roles: Roles, client: Client, folder: Path) -> None:
        self.roles = roles
        self.client = client
        self.folder = folder
        self._lives = {"ledger": 0, "worker": 0}

    def begin(self, name: str) -> None:
        words = (name, "go_jobs.py", "--worker-id", "go") if name == "worker" else (name,)
        self.roles.begin(f"{name} {self._lives[name]}", *words)

    def kill(self, name: str) -> None:
        process = self.roles.roles[f"{name} {self._lives[name]}"].process
        assert process is not None
        process.kill()
        process.wait()
        self._lives[name] += 1

    def ask(self, type_name: str, job_id: str) -> JobHandle:
        payload = {"folder": str(self.folder)}
        return self.client.enqueue(type_name, user_id="u", job_id=job_id, payload=payload)

    def signal(self, job_id: str, by: str = "ada") -> CommandReceipt:
        return self.client.signal("u", job_id, "go", {"by": by}, actor=by)

    def answer(self, receipt: CommandReceipt) -> CommandAnswer:
        """As soon as somebody decides about it."""
        found: list[CommandAnswer] = []

        def is_there() -> bool:
            try:
                found.append(self.client.answer(receipt, timeout=5))
            except AnswerTimeout:
                return False
            return True

        wait_until(is_there, SECONDS, "no answer")
        return found[0]

    def until_begun(self, *job_ids: str) -> None:
        wait_until(
            lambda: all((self.folder / job_id).exists() for job_id in job_ids), SECONDS, "no steps"
        )

    def check_end(self, handle: JobHandle, by: str = "ada") -> None:
        done = self.client.wait(handle, timeout=SECONDS)
        assert (done.status, done.attempts, done.result) == ("succeeded", 1, [by, 1, "after"]), done
        assert (self.folder / handle.job_id).read_text() == "x"


def test_signals_outlive_ledger_and_worker(kafka: str, tmp_path: Path) -> None:
    (tmp_path / "go_jobs.py").write_text(MODULE)
    env = {
        **os.environ, "TIDEMILL_KAFKA": kafka, "TIDEMILL_TOPIC_PREFIX": PREFIX,
        "TIDEMILL_NATIVE": "0", "PYTHONPATH": str(ROOT),
    }
    with ExitStack() as ending, Client(kafka=kafka, topic_prefix=PREFIX) as client:
        roles = Roles(tmp_path, env, ending, command_seconds=SECONDS)
        assert roles.tidemill("topics", "apply").returncode == 0
        stand = Stand(roles, client, tmp_path)
        stand.begin("ledger")
        # Before anybody has asked for the job; the command line tells what came of it.
        early = roles.tidemill("signal", "u", "early", "go", '{"by": "ada"}', "--actor", "ada")
        assert early.returncode == 0, early.stdout
        assert json.loads(early.stdout)["event"] == "signal_kept"
        stand.kill("ledger")
        stand.begin("ledger")
        stand.begin("worker")
        handles = [stand.ask(name, name) for name in TYPES]
        early_one, late_one = stand.ask("go.async", "early"), stand.ask("go.late", "late")
        stand.until_begun(*TYPES)
        stand.check_end(early_one)
        for play, handle in zip((_both_die, _ledger_dies, _worker_dies), handles, strict=True):
            play(stand, handle)
        assert client.wait(late_one, timeout=SECONDS).result == "late"
        refused = stand.answer(stand.signal("go.async", "bob"))
        assert (refused.event, refused.reason) == ("command_refused", "already_ended")
    report = check_installation(kafka, prefix=PREFIX, expectations=Expectations())
    assert report.is_clean, report.text()


def _both_die(stand: Stand, handle: JobHandle) -> None:
    """The signal is sent while nobody is there, and a second one behind it."""
    stand.kill("ledger")
    stand.kill("worker")
    first, second = handle.signal_sync("go", {"by": "ada"}), stand.signal(handle.job_id, "bob")
    stand.begin("ledger")
    stand.begin("worker")
    assert stand.answer(first).event in ("resumed", "signal_kept")
    refused = stand.answer(second)
    assert (refused.event, refused.reason) == ("command_refused", "already_signalled")
    stand.check_end(handle)


def _ledger_dies(stand: Stand, handle: JobHandle) -> None:
    """Right behind the signal, whether it has been decided or not."""
    receipt = stand.signal(handle.job_id)
    stand.kill("ledger")
    stand.begin("ledger")
    assert stand.answer(receipt).event in ("resumed", "signal_kept")
    stand.check_end(handle)


def _worker_dies(stand: Stand, handle: JobHandle) -> None:
    """Right behind the going on, perhaps in its step."""
    assert stand.answer(stand.signal(handle.job_id)).event == "resumed"
    stand.kill("worker")
    stand.begin("worker")
    done = stand.client.wait(handle, timeout=SECONDS)
    assert (done.status, done.attempts, done.result) == ("succeeded", 1, ["ada", 1, "after"]), done
