"""When a supervisor starts a dead process again."""

from __future__ import annotations

import signal

import pytest

from tidemill.agents import exit_codes
from tidemill.agents import supervisor as supervisor_module
from tidemill.agents.supervisor import BACKOFF_SECONDS, LOOK_SECONDS, Supervisor

# The recovery benchmark kills a worker about this often; each kill stands for itself.
BETWEEN_KILLS_SECONDS = 15.0
EPSILON_SECONDS = 0.001


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


class Child:
    """A process that serves at once and dies when the test says so."""

    name = "worker"

    def __init__(self) -> None:
        self.starts = 0
        self.code: int | None = None

    def start(self) -> None:
        self.starts += 1
        self.code = None

    def go(self) -> None:
        pass

    def exit_code(self) -> int | None:
        return self.code

    def is_ready(self) -> bool:
        return self.code is None

    def terminate(self) -> None:
        self.code = 0

    def kill(self) -> None:
        self.code = -signal.SIGKILL


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(supervisor_module, "time", clock)
    return clock


def seconds_away(supervisor: Supervisor, child: Child, clock: Clock) -> float:
    """From the child's death to its next start."""
    child.kill()
    supervisor.look()
    died_at, starts = clock.now, child.starts
    while child.starts == starts:
        clock.now += LOOK_SECONDS
        supervisor.look()
    return clock.now - died_at


def test_a_child_that_dies_at_once_is_started_ever_more_slowly(clock: Clock) -> None:
    child, supervisor = Child(), Supervisor(lambda line: None)
    supervisor.add(child, 0)
    for backoff in (*BACKOFF_SECONDS, BACKOFF_SECONDS[-1]):
        away = seconds_away(supervisor, child, clock)
        assert backoff - EPSILON_SECONDS <= away <= backoff + 2 * LOOK_SECONDS


def test_kills_of_a_child_that_served_in_between_do_not_add_up(clock: Clock) -> None:
    child, supervisor = Child(), Supervisor(lambda line: None)
    supervisor.add(child, 0)
    for _ in range(len(BACKOFF_SECONDS)):
        clock.now += BETWEEN_KILLS_SECONDS
        supervisor.look()
        away = seconds_away(supervisor, child, clock)
        assert away <= BACKOFF_SECONDS[0] + 2 * LOOK_SECONDS


@pytest.mark.parametrize("code", [exit_codes.TOO_OLD])
def test_a_final_error_ends_all_however_long_the_child_has_served(clock: Clock, code: int) -> None:
    said: list[str] = []
    child, supervisor = Child(), Supervisor(said.append)
    supervisor.add(child, 0)
    supervisor.look()
    clock.now += 3_600
    child.code = code
    supervisor.look()
    clock.now += 3_600
    supervisor.look()
    assert (supervisor.fatal_exit_code, child.starts) == (code, 1)
    assert any("worker cannot" in line for line in said)
