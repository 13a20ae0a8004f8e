"""Workers that are busy and not dead: a held interpreter or loop, and what must still be quick.

Owns real roles over the session's broker: a ledger, a worker for each way of being busy, and a peer
that serves the same queues and comes while they are busy. The handlers leave marks of their own, so
that what is asserted does not hang on what the engine says of itself.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

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
# From the end of a worker to the next start of its job: 10 s of silence, and a busy machine.
RESCUE_SECONDS: Final = 30.0
QUICK: Final = 20
QUICK_SECONDS: Final = 40.0  # the group forgets a member after 8 s, the others share anew
JOBS: Final = """
import ctypes, os, pathlib, time
from tidemill import job

def mark(payload, what):
    with pathlib.Path(payload["file"]).open("a") as file:
        file.write(f"{what} {os.getpid()} {time.time()}\\n")

def hold(seconds):
    # `sleep` of C without letting go of the interpreter, as a native extension may do.
    ctypes.PyDLL(None).sleep(int(seconds))

@job("QUEUE.hold", queue="QUEUE", timeout_seconds=300)
def hold_job(payload: dict) -> str:
    mark(payload, "begin"); hold(payload["seconds"]); mark(payload, "end")
    return "held"

@job("QUEUE.past", queue="QUEUE", timeout_seconds=5)
def past(payload: dict) -> str:
    mark(payload, "begin"); hold(payload["seconds"]); mark(payload, "end")
    return "held"

@job("QUEUE.block", queue="QUEUE")
async def block(payload: dict) -> str:
    mark(payload, "begin"); time.sleep(payload["seconds"]); mark(payload, "end")
    return "blocked"

@job("QUEUE.burst", queue="QUEUE")
def burst(payload: dict) -> str:
    mark(payload, "begin")
    for _ in range(int(payload["seconds"]) // 5):
        hold(5)
        time.sleep(0.001)
    mark(payload, "end")
    return "in bursts"

@job("QUEUE.long", queue="QUEUE")
def long(payload: dict) -> str:
    mark(payload, "begin"); time.sleep(payload["seconds"]); mark(payload, "end")
    return "long"

@job("QUEUE.process", queue="QUEUE", process=True)
def process(payload: dict) -> str:
    mark(payload, "begin"); hold(payload["seconds"]); mark(payload, "end")
    return "apart"

@job("QUEUE.quick", queue="QUEUE")
async def quick(payload: dict) -> str:
    return "quick"
"""
SLOW: Final = 6  # jobs that wait for the one thread of a worker
LINE_SECONDS: Final = 60
# Queue, handler, seconds. `past` holds for longer than its time-out, `hold` than any time of ours.
HELD: Final = (
    ("hold", "hold", 75), ("past", "past", 20), ("block", "block", 40), ("burst", "burst", 30),
    ("killed", "long", 45), ("stopped", "long", 45), ("dies", "hold", 45),
)


class Mark(NamedTuple):
    """One line of a handler's."""

    what: str
    pid: int
    at: float


class Busy(Roles):
    """A ledger, and workers by the name of their queue."""

    def __init__(self, folder: Path, env: dict[str, str], ending: ExitStack) -> None:
        super().__init__(folder, env, ending, command_seconds=2 * SECONDS)
        self._prefix = env["TIDEMILL_TOPIC_PREFIX"]
        self._producer = Producer({"bootstrap.servers": env["TIDEMILL_KAFKA"]})
        self._events = Tail(env["TIDEMILL_KAFKA"], f"{self._prefix}jobs.events")
        self._events.start()
        ending.callback(self._events.close)

    def work(self, queue: str, *more: str) -> Role:
        """A worker whose handlers are of that queue, or of those modules too."""
        (self.folder / f"jobs_{queue}.py").write_text(JOBS.replace("QUEUE", queue))
        return self.begin(
            queue, "worker", f"jobs_{queue}.py", *more, "--worker-id", f"w-{queue}"
        )

    def ask(
        self, type: str, queue: str, job_id: str, seconds: float = 0, user: str | None = None
    ) -> None:
        """Jobs of one user are dispatched in the order in which they were asked for."""
        payload = {"file": str(self.file(job_id)), "seconds": seconds}
        user_id = job_id if user is None else user
        body = {
            "type": f"{queue}.{type}", "queue": queue, "user_id": user_id, "job_id": job_id,
            "payload": payload,
        }
        self._producer.produce(
            f"{self._prefix}jobs.requested", orjson.dumps(body), user_id.encode()
        )
        assert self._producer.flush(SECONDS) == 0

    def file(self, job_id: str) -> Path:
        return self.folder / f"{job_id}.marks"

    def marks(self, job_id: str) -> list[Mark]:
        """What the handler has written so far."""
        if not self.file(job_id).exists():
            return []
        lines = [line.split() for line in self.file(job_id).read_text().splitlines()]
        return [Mark(what, int(pid), float(at)) for what, pid, at in lines]

    def begins(self, job_id: str) -> list[Mark]:
        return [mark for mark in self.marks(job_id) if mark.what == "begin"]

    def story(self, job_id: str) -> list[dict[str, Any]]:
        found = [orjson.loads(record.value or b"") for record in list(self._events.records)]
        return [event for event in found if event["job_id"] == job_id]

    def end_of(self, job_id: str) -> dict[str, Any] | None:
        ends = ("succeeded", "failed", "cancelled", "skipped", "expired")
        return next((event for event in self.story(job_id) if event["event"] in ends), None)

    def wait_begun(self, job_id: str, times: int = 1, seconds: float = SECONDS) -> Mark:
        wait_until(
            lambda: len(self.begins(job_id)) >= times, seconds, lambda: self.told(job_id)
        )
        return self.begins(job_id)[times - 1]

    def wait_end(self, job_id: str, seconds: float = SECONDS) -> dict[str, Any]:
        return wait_until(lambda: self.end_of(job_id), seconds, lambda: self.told(job_id)) or {}

    def told(self, job_id: str) -> str:
        """The story of a job and the ends of all logs."""
        story = "\n".join(
            f"{event['event']} {event.get('reason')} {event.get('data')}"
            for event in self.story(job_id)
        )
        logs = "\n".join(f"--- {name}\n{role.tail()}" for name, role in self.roles.items())
        return f"{job_id}: {self.marks(job_id)}\n{story}\n{logs}"

    def assert_once(self, job_id: str, *, may_wait: bool = False) -> None:
        """It began once, in one process, and its story says so. `may_wait`: it may have been handed
        back before it began."""
        end = self.wait_end(job_id)
        kinds = [event["event"] for event in self.story(job_id)]
        assert [mark.what for mark in self.marks(job_id)] == ["begin", "end"], self.told(job_id)
        assert end["event"] == "succeeded", self.told(job_id)
        assert end["attempt"] == 1, self.told(job_id)
        assert not {"rescued", "attempt_failed"} & set(kinds), self.told(job_id)
        assert may_wait or kinds.count("dispatched") == 1, self.told(job_id)


@pytest.fixture(scope="module")
def busy(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Busy]:
    folder = tmp_path_factory.mktemp("busy")
    env = os.environ | {
        "TIDEMILL_KAFKA": kafka, "TIDEMILL_TOPIC_PREFIX": f"t{uuid.uuid4().hex[:10]}",
    }
    with ExitStack() as ending:
        made = Busy(folder, env, ending)
        applied = made.tidemill("topics", "apply")
        assert applied.returncode == exit_codes.OK, applied.stderr
        roles = [made.begin("ledger", "ledger")]
        roles += [made.work(queue) for queue, _, _ in HELD]
        for role in roles:
            wait_until(role.is_ready, SECONDS, role.tail)
        yield made


@pytest.fixture(scope="module")
def held(busy: Busy) -> Busy:
    """Each of them gets busy in its own way; then a peer comes that serves all of their queues."""
    for queue, type, seconds in HELD:
        busy.ask(type, queue, f"job-{queue}", seconds)
    for queue, _, _ in HELD:
        busy.wait_begun(f"job-{queue}")
    busy.work("peer", *(f"jobs_{queue}.py" for queue, _, _ in HELD))
    return busy


def test_a_dead_worker_is_rescued_as_ever_and_nobody_waits_for_busy_ones(held: Busy) -> None:
    ended_at = time.time()
    for name, sent in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
        process = held.roles[name].process
        assert process is not None
        process.send_signal(sent)
    peer = held.roles["peer"]
    wait_until(peer.is_ready, SECONDS, peer.tail)
    asked_at = time.time()
    for number in range(QUICK):
        held.ask("quick", HELD[number % len(HELD)][0], f"quick-{number}")
    for number in range(QUICK):
        held.wait_end(f"quick-{number}")
    assert time.time() - asked_at < QUICK_SECONDS, held.told("quick-0")
    # A worker that dies while it is busy is as dead as any other.
    dying = held.roles["dies"].process
    assert dying is not None
    dying.kill()
    died_at = time.time()
    for name, at in (("killed", ended_at), ("stopped", ended_at), ("dies", died_at)):
        again = held.wait_begun(f"job-{name}", times=2, seconds=2 * RESCUE_SECONDS)
        assert again.at - at < RESCUE_SECONDS, held.told(f"job-{name}")


def test_what_waits_in_a_stalled_worker_goes_elsewhere_and_the_first_one_stays(held: Busy) -> None:
    # 1. One slot, held for long; the jobs behind it are in the same worker's line.
    alone = held.work("line", "--threads", "1")
    wait_until(alone.is_ready, SECONDS, alone.tail)
    names = [f"line-{number}" for number in range(SLOW)]
    for number, name in enumerate(names):
        held.ask("hold", "line", name, LINE_SECONDS if number == 0 else 1, user="line")
    begun_at = held.wait_begun(names[0]).at
    # 2. Somebody else comes: what has not begun is run there, long before the stall is over.
    helper = held.begin(
        "helper", "worker", "jobs_line.py", "--worker-id", "w-helper", "--threads", "2"
    )
    wait_until(helper.is_ready, SECONDS, helper.tail)
    for name in names[1:]:
        held.wait_end(name)
    assert time.time() - begun_at < LINE_SECONDS, held.told(names[1])
    # 3. A word to stop while it is stalled: the attempt is given its grace once the stall is over.
    process = alone.process
    assert process is not None
    process.terminate()
    held.assert_once(names[0], may_wait=True)
    assert process.wait(SECONDS) == exit_codes.OK, alone.tail()
    for name in names:
        assert [mark.what for mark in held.marks(name)] == ["begin", "end"], held.told(name)


def test_whoever_was_busy_and_lived_ran_its_attempt_once(held: Busy) -> None:
    for queue in ("past", "burst", "block", "hold"):
        held.assert_once(f"job-{queue}")
