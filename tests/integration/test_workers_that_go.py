"""Workers that go with nobody to start them again: killed without a stable id, and many deploys.

Owns real roles over the session's broker: a ledger, and workers that are started one by one. The
handlers leave marks of their own.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from confluent_kafka import Producer

from tests.chaos.engine import Role
from tests.chaos.running import Tail
from tests.integration.roles import Roles
from tests.waiting import wait_until
from tidemill.agents import exit_codes

pytestmark = pytest.mark.timeout(300)

SECONDS: Final = 90.0
NEIGHBOURS: Final = 12
# From the first death of a worker to the end of all that ran or waited beside it: 13 s here, of
# which 8 are the group's; a busy machine gets a little more than the 15 that are promised.
NEIGHBOUR_SECONDS: Final = 18.0
INTERRUPTIONS_MAX: Final = 2
HOLD_SECONDS: Final = 10  # longer than a stop may take here: a grace of 1 s, and our own steps
ENDS: Final = ("succeeded", "failed", "cancelled", "skipped", "expired")
JOBS: Final = """
import asyncio, ctypes, os, pathlib, signal, time
from tidemill import job

def mark(payload):
    with pathlib.Path(payload["file"]).open("a") as file:
        file.write(f"{os.getpid()} {time.time()}\\n")
    return len(pathlib.Path(payload["file"]).read_text().splitlines())

@job("QUEUE.once", queue="QUEUE")
def once(payload: dict) -> str:
    if mark(payload) == 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    return "lived"

@job("QUEUE.short", queue="QUEUE")
async def short(payload: dict) -> str:
    mark(payload)
    await asyncio.sleep(1)
    return "done"

@job("QUEUE.thread", queue="QUEUE")
def thread(payload: dict) -> str:
    mark(payload)
    time.sleep(1)
    return "done"

@job("QUEUE.hold", queue="QUEUE")
def hold(payload: dict) -> str:
    mark(payload)
    while not pathlib.Path(payload["go"]).exists():
        time.sleep(0.05)
    # `sleep` of C without letting go of the interpreter, as a native extension may do.
    ctypes.PyDLL(None).sleep(payload["seconds"])
    return "held"

@job("QUEUE.long", queue="QUEUE", timeout_seconds=3600)
async def long(payload: dict) -> str:
    mark(payload)
    await asyncio.sleep(600)
    return "never"
"""


class Fleet(Roles):
    """A ledger, and workers that serve one queue each."""

    def __init__(self, folder: Path, env: dict[str, str], ending: ExitStack) -> None:
        super().__init__(folder, env, ending, command_seconds=2 * SECONDS)
        self._prefix = env["TIDEMILL_TOPIC_PREFIX"]
        self._producer = Producer({"bootstrap.servers": env["TIDEMILL_KAFKA"]})
        self._events = Tail(env["TIDEMILL_KAFKA"], f"{self._prefix}jobs.events")
        self._beats = Tail(env["TIDEMILL_KAFKA"], f"{self._prefix}jobs.heartbeats")
        for tail in (self._events, self._beats):
            tail.start()
            ending.callback(tail.close)

    def work(self, name: str, queue: str) -> Role:
        """A worker without an id of its own, ready."""
        (self.folder / f"jobs_{queue}.py").write_text(JOBS.replace("QUEUE", queue))
        role = self.begin(name, "worker", f"jobs_{queue}.py")
        wait_until(role.is_ready, SECONDS, role.tail)
        return role

    def ask(self, type: str, job_id: str, **payload: Any) -> None:
        body = {
            "type": type, "queue": type.partition(".")[0], "user_id": job_id, "job_id": job_id,
            "payload": payload | {"file": str(self.folder / f"{job_id}.marks")},
        }
        self._producer.produce(
            f"{self._prefix}jobs.requested", orjson.dumps(body), job_id.encode()
        )
        assert self._producer.flush(SECONDS) == 0

    def stops(self) -> int:
        """How often a worker has said that it stops."""
        beats = [orjson.loads(record.value or b"{}") for record in list(self._beats.records)]
        return sum(bool(beat.get("is_stopping")) for beat in beats)

    def begun(self, job_id: str) -> int:
        """How often its handler was called."""
        file = self.folder / f"{job_id}.marks"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def story(self, job_id: str) -> list[dict[str, Any]]:
        found = [orjson.loads(record.value or b"") for record in list(self._events.records)]
        return [event for event in found if event["job_id"] == job_id]

    def wait_end(self, job_id: str) -> dict[str, Any]:
        def end() -> dict[str, Any] | None:
            return next((each for each in self.story(job_id) if each["event"] in ENDS), None)

        return wait_until(end, SECONDS, lambda: self.told(job_id)) or {}

    def told(self, job_id: str) -> str:
        story = "\n".join(
            f"{each['occurred_at']} {each['event']} {each.get('reason')} {each.get('data')}"
            for each in self.story(job_id)
        )
        logs = "\n".join(f"--- {name}\n{role.tail()}" for name, role in self.roles.items())
        return f"{job_id}\n{story}\n{logs}"


@pytest.fixture(scope="module")
def fleet(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    env = os.environ | {
        "TIDEMILL_KAFKA": kafka, "TIDEMILL_TOPIC_PREFIX": f"t{uuid.uuid4().hex[:10]}",
        "TIDEMILL_INTERRUPTIONS_MAX": str(INTERRUPTIONS_MAX),
        "TIDEMILL_STOP_GRACE_SECONDS": "1",
    }
    with ExitStack() as ending:
        made = Fleet(folder, env, ending)
        applied = made.tidemill("topics", "apply")
        assert applied.returncode == exit_codes.OK, applied.stderr
        ledger = made.begin("ledger", "ledger")
        wait_until(ledger.is_ready, SECONDS, ledger.tail)
        yield made


def is_over(role: Role) -> bool:
    assert role.process is not None
    return role.process.poll() is not None


def test_what_ran_beside_a_killed_worker_ends_soon_elsewhere(fleet: Fleet) -> None:
    queue = "take"
    both = [fleet.work(f"{queue}-{number}", queue) for number in range(2)]
    names = [f"{queue}-neighbour-{number}" for number in range(NEIGHBOURS)]
    fleet.ask(f"{queue}.once", f"{queue}-killer")
    for number, name in enumerate(names):
        fleet.ask(f"{queue}.{'short' if number % 2 else 'thread'}", name)
    wait_until(lambda: any(map(is_over, both)), SECONDS, lambda: fleet.told(f"{queue}-killer"))
    died_at = time.time()
    for name in names:
        end = fleet.wait_end(name)
        assert end["event"] == "succeeded", fleet.told(name)
        assert fleet.begun(name) <= 2, fleet.told(name)
    assert time.time() - died_at < NEIGHBOUR_SECONDS, fleet.told(names[-1])
    # The killer itself is tried again by the other one, and lives this time.
    assert fleet.wait_end(f"{queue}-killer")["event"] == "succeeded"
    assert [is_over(role) for role in both].count(True) == 1
    events = [each["event"] for each in fleet.story(f"{queue}-killer")]
    assert events.count("rescued") == 1, fleet.told(f"{queue}-killer")


def test_deploys_that_interrupt_a_long_job_are_counted_told_and_bounded(fleet: Fleet) -> None:
    job_id = "deployed-over"
    fleet.ask("deploy.long", job_id)
    for deploy in range(1, INTERRUPTIONS_MAX + 2):
        role = fleet.work(f"deploy-{deploy}", "deploy")
        wait_until(
            lambda deploy=deploy: fleet.begun(job_id) == deploy,  # type: ignore[misc]
            SECONDS, lambda: fleet.told(job_id),
        )
        assert role.process is not None
        role.process.terminate()
        assert role.process.wait(SECONDS) == exit_codes.OK, role.tail()
    end = fleet.wait_end(job_id)
    assert end["event"] == "failed", fleet.told(job_id)
    assert end["error"]["code"] == "INTERRUPTED"
    returns = [each for each in fleet.story(job_id) if each["event"] == "returned"]
    assert [each["reason"] for each in returns] == ["interrupted"] * (INTERRUPTIONS_MAX + 1)
    assert all("its worker stopped after" in each["data"]["detail"] for each in returns)
    # Nobody starts it again, and it can be redriven by hand.
    assert fleet.begun(job_id) == INTERRUPTIONS_MAX + 1


def test_a_stop_waits_for_code_that_holds_the_worker(fleet: Fleet) -> None:
    role = fleet.work("hold", "hold")
    go = fleet.folder / "go"
    fleet.ask("hold.hold", "held", go=str(go), seconds=HOLD_SECONDS)
    fleet.ask("hold.long", "held-up")
    for name in ("held", "held-up"):
        wait_until(lambda name=name: fleet.begun(name), SECONDS, role.tail)  # type: ignore[misc]
    assert role.process is not None
    # The word to stop has been heard when the hold begins.
    former = fleet.stops()
    role.process.terminate()
    wait_until(lambda: fleet.stops() > former, SECONDS, role.tail)
    go.touch()
    assert role.process.wait(SECONDS) == exit_codes.OK, role.tail()
    assert "the graceful stop waits" in role.tail()
    # What ended while nothing else could run has ended well; the other one is interrupted.
    assert fleet.wait_end("held")["event"] == "succeeded", fleet.told("held")
    wait_until(lambda: "returned" in fleet.told("held-up"), SECONDS, role.tail)
    for name in ("held", "held-up"):
        assert "rescued" not in {each["event"] for each in fleet.story(name)}, fleet.told(name)
        assert fleet.begun(name) == 1
