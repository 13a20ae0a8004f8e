"""Ledger and worker end between every pair of steps in the life of a job that sleeps.

Owns the table of lives: which crash point of the code ends which process at which step. A gate in
the handler holds each step back until the crash is armed, so nothing is left to luck; then the
whole log is proved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import orjson
import pytest
from confluent_kafka import Producer

from tests.chaos.checker import Expectations, check_installation
from tests.chaos.engine import LEDGERS, WORKERS, Engine
from tests.chaos.running import Ends, Tail, running_engine
from tests.waiting import wait_until
from tidemill.agents.crash import CRASH_EXIT_CODE, CRASH_VARIABLE

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

TYPE: Final = "gated.nap"
WAIT_SECONDS: Final = 60.0
# Steps of a life, in order: what is seen of the job before the step, and how often.
SEEN: Final = {
    "ask": ("", 0), "step": ("attempt_started", 1), "sleep": ("step_completed", 1),
    "wake": ("suspended", 1), "step again": ("attempt_started", 2), "end": ("step_completed", 2),
}
LIVES: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("ledger.before_begin", ("ask", "step", "sleep", "wake", "step again", "end")),
    ("ledger.after_produce_before_commit", ("sleep", "wake")),
    ("ledger.after_commit_before_apply", ("step", "sleep", "wake", "end")),
    ("ledger.after_apply_before_ack", ("sleep", "wake")),
    ("worker.after_run_before_outcome", ("step", "sleep", "step again")),
    ("worker.after_outcome_before_commit", ("step", "sleep")),
)
"""Crash point -> the steps at which a process ends there, all in the life of one job."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One ledger and one worker, so that each has all the work."""
    folder = tmp_path_factory.mktemp("points")
    with running_engine(folder, ["tests/chaos/gated.py"], ledgers=1) as running:
        yield running


@pytest.fixture(scope="module")
def tails(engine: Engine) -> Iterator[tuple[Tail, Ends]]:
    """Events and ends."""
    events, ends = Tail(engine.kafka, "jobs.events"), Ends(engine.kafka)
    for tail in (events, ends):
        tail.start()
    yield events, ends
    for tail in (events, ends):
        tail.close()


class Life:
    """A job, and the process that ends in it again and again."""

    def __init__(self, engine: Engine, events: Tail, point: str, folder: Path) -> None:
        self.job = ("ann", point)
        self._engine, self._events, self._point, self._folder = engine, events, point, folder
        self.role = engine.roles[LEDGERS[0] if point.startswith("ledger") else WORKERS[0]]
        self._armed = 0
        self._arm_next_start()
        before = len(engine.deaths)
        self.role.kill()
        wait_until(lambda: len(engine.deaths) > before, WAIT_SECONDS, "it lives on")
        engine.wait_ready(self.role.name)

    def _arm_next_start(self) -> None:
        self._armed += 1
        self.role.env = {CRASH_VARIABLE: f"{self._point}@{self._folder / str(self._armed)}"}

    def count(self, kind: str) -> int:
        """Events of that kind that the log has of the job."""
        found = [orjson.loads(record.value or b"") for record in list(self._events.records)]
        return sum((one["job_id"], one["event"]) == (self.job[1], kind) for one in found)

    def go_on(self, step: str, *, ends_there: bool) -> None:
        """The next step; the process ends in it, or does not."""
        kind, times = SEEN[step]
        wait_until(lambda: self.count(kind) >= times, WAIT_SECONDS, f"{step}: no {kind} {times}")
        ended = self._ended()
        if ends_there:
            armed = self._folder / str(self._armed)
            self._arm_next_start()
            armed.touch()
        (self._folder / step).touch()
        if step == "ask":
            self._ask()
        if ends_there:
            wait_until(lambda: self._ended() > ended, WAIT_SECONDS, f"{step}: it does not end")
            self._engine.wait_ready(self.role.name)

    def _ended(self) -> int:
        return sum(death.exit_code == CRASH_EXIT_CODE for death in self._engine.deaths)

    def _ask(self) -> None:
        client = Producer({"bootstrap.servers": self._engine.kafka, "linger.ms": 0})
        body = {
            "type": TYPE, "user_id": self.job[0], "job_id": self.job[1],
            "payload": {"folder": str(self._folder)},
        }
        client.produce("jobs.requested", json.dumps(body), self.job[0])
        client.flush(10)

    def close(self) -> None:
        """Later processes of the role end as they like."""
        self.role.env = {}


@pytest.mark.parametrize(("point", "steps"), LIVES, ids=[point for point, _ in LIVES])
def test_a_process_ends_at_each_step(
    engine: Engine, tails: tuple[Tail, Ends], tmp_path: Path, point: str, steps: tuple[str, ...]
) -> None:
    events, ends = tails
    life = Life(engine, events, point, tmp_path)
    for step in SEEN:
        life.go_on(step, ends_there=step in steps)
    ended = ends.wait_for({life.job})[life.job]
    assert (ended["status"], ended["attempts"]) == ("succeeded", 1)
    assert life.count("suspended") == life.count("resumed") == 1
    life.close()


def test_the_whole_log_is_right(engine: Engine) -> None:
    expected = Expectations(max_attempts={TYPE: 3}, tells_steps=frozenset({TYPE}))
    report = check_installation(engine.kafka, expectations=expected)
    assert report.is_clean, report.text()
    assert report.checked["resumed"] == len(LIVES)
    assert report.checked["steps"] == 2 * len(LIVES)
