"""Fan-out on real parts: parents of every kind, tolerance, redrive, cancel, and kill -9 between
the parts of a list."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.checker import Expectations, check_installation
from tests.integration import gather_jobs
from tests.integration.roles import Roles
from tests.integration.stories import Feed
from tests.tidy.sources import ROOT
from tests.waiting import wait_until
from tidemill import Client, CompletedJob
from tidemill.agents.crash import CRASH_EXIT_CODE, CRASH_VARIABLE

pytestmark = pytest.mark.timeout(240)
SECONDS = 90.0
PREFIX = "gather."


@dataclass
class Stack:
    """A ledger and a worker, and a client of theirs."""

    client: Client
    roles: Roles
    folder: Path
    feed: Feed

    def ask(self, type: str, job_id: str, **payload: Any) -> Any:
        (self.folder / job_id).mkdir()
        told = {"folder": str(self.folder / job_id), **payload}
        return self.client.enqueue(type, user_id="u", job_id=job_id, payload=told)

    def end(self, type: str, job_id: str, **payload: Any) -> CompletedJob:
        return self.client.wait(self.ask(type, job_id, **payload), timeout=SECONDS)

    def story(self, user_id: str, job_id: str) -> list[str]:
        """The kinds of a job's events so far."""
        return [each["event"] for each in self.feed.of(user_id) if each["job_id"] == job_id]

    def runs(self, job_id: str) -> dict[str, int]:
        """How often each member ran, by its id without the parent's."""
        return {
            file.name.removeprefix(f"{job_id}."): len(file.read_text())
            for file in (self.folder / job_id).iterdir() if file.name != "mended"
        }


@pytest.fixture(scope="module")
def stack(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("gather")
    env = {
        **os.environ, "TIDEMILL_KAFKA": kafka, "TIDEMILL_TOPIC_PREFIX": PREFIX,
        "TIDEMILL_NATIVE": "0", "PYTHONPATH": str(ROOT),
    }
    with ExitStack() as ending, Client(kafka=kafka, topic_prefix=PREFIX) as client:
        roles = Roles(folder, env, ending, command_seconds=SECONDS)
        assert roles.tidemill("topics", "apply").returncode == 0
        roles.begin("ledger", "ledger")
        jobs = str(Path(gather_jobs.__file__))
        roles.begin("worker", "worker", jobs, "--worker-id", "gatherer")
        feed = Feed(kafka, PREFIX)
        ending.callback(feed.close)
        yield Stack(client, roles, folder, feed)
        worker = roles.roles["worker"]
        worker.kill()  # the last process of that name, which a test has started again
        assert worker.process is not None
        worker.process.wait(SECONDS)
    report = check_installation(kafka, prefix=PREFIX, expectations=Expectations())
    assert report.is_clean, report.text()


@pytest.mark.parametrize("kind", ["async", "thread", "process"])
def test_ends_come_in_the_order_of_the_requests(kind: str, stack: Stack) -> None:
    name = f"order-{kind}"
    done = stack.end(f"fan.{kind}", name, count=20, parallel=3)
    assert (done.status, done.attempts) == ("succeeded", 1), done
    assert done.result == [[f"{name}.runs.{n}", "succeeded", n] for n in range(20)]
    assert stack.runs(name) == {f"runs.{n}": 1 for n in range(20)}


def test_as_many_may_fail_as_are_tolerated(stack: Stack) -> None:
    done = stack.end("fan.async", "tolerant", count=10, failing=2, tolerate="20%")
    assert done.status == "succeeded", done
    assert [status for _, status, _ in done.result] == ["failed"] * 2 + ["succeeded"] * 8
    caught = stack.end("fan.catches", "catches", count=3, failing=1)
    assert caught.result == [["catches.runs.0", "failed", None]]


def test_a_redrive_runs_only_what_did_not_succeed(stack: Stack) -> None:
    handle = stack.ask("fan.thread", "again", count=6, failing=2, tolerate=1)
    done = stack.client.wait(handle, timeout=SECONDS)
    assert (done.status, done.error and done.error.code) == ("failed", "MEMBERS_FAILED"), done
    assert done.error is not None
    for member in ("again.runs.0 (BROKEN)", "again.runs.1 (BROKEN)"):
        assert member in done.error.message
    (stack.folder / "again" / "mended").touch()
    stack.client.redrive("u", "again")
    done = stack.client.wait(handle, timeout=SECONDS, run=2)
    assert (done.status, done.run) == ("succeeded", 2), done
    assert stack.runs("again") == {f"runs.{n}": 2 if n < 2 else 1 for n in range(6)}


def test_a_cancel_of_the_parent_ends_its_members(stack: Stack) -> None:
    handle = stack.ask("fan.async", "stopped", count=5, parallel=2, waits=True)
    wait_until(lambda: len(stack.runs("stopped")) == 2, SECONDS, "no members")
    stack.client.cancel("u", "stopped")
    assert stack.client.wait(handle, timeout=SECONDS).status == "cancelled"
    wait_until(
        lambda: all(
            "cancelled" in stack.story(user, f"stopped.runs.{number}")
            for number, user in enumerate(("u-0", "u"))
        ),
        SECONDS, "its members go on",
    )
    assert len(stack.runs("stopped")) == 2


def test_one_gather_after_the_other(stack: Stack) -> None:
    done = stack.end("fan.twice", "twice", count=4)
    assert done.result == [4, 6, 6], done
    assert stack.runs("twice") == {
        **{f"first.{n}": 1 for n in range(4)}, **{f"second.{n}": 1 for n in range(6)},
    }


def test_results_that_fit_no_record_come_in_parts(stack: Stack) -> None:
    done = stack.end("fan.async", "much", count=60, returns=100_000)
    assert [n for _, _, n in done.result] == list(range(60)), done
    assert stack.runs("much") == {f"runs.{n}": 1 for n in range(60)}


@pytest.mark.parametrize("record", [2, 4])
def test_a_worker_that_dies_between_parts_leaves_nothing_double(record: int, stack: Stack) -> None:
    """2.5 MB of requests are ten parts in some five records, and the start before them."""
    worker = stack.roles.roles["worker"]
    worker.kill()
    assert worker.process is not None
    worker.process.wait(SECONDS)
    worker.env = {
        **stack.roles.env, CRASH_VARIABLE: f"worker.after_outcome_before_commit:{record}",
    }
    worker.start()
    name = f"killed-{record}"
    handle = stack.ask("fan.async", name, count=50, size=50_000)
    assert worker.process.wait(SECONDS) == CRASH_EXIT_CODE
    worker.env = stack.roles.env
    worker.start()
    done = stack.client.wait(handle, timeout=SECONDS)
    assert (done.status, done.attempts) == ("succeeded", 1), done
    assert [n for _, _, n in done.result] == list(range(50))
    assert stack.runs(name) == {f"runs.{n}": 1 for n in range(50)}
