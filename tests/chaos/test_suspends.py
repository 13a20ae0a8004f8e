"""The checker's own test of steps, waits and ticks: only right logs are clean."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import orjson
import pytest

from tests.chaos.checker import Evidence, Expectations
from tests.chaos.handmade import START_MS, History, instant
from tests.chaos.ledger_rows import digest_of
from tests.chaos.rawlog import RawRecord
from tests.chaos.ticks import TickPlan

NAP_MS: Final = 500
FIRST: Final = {"name": "first", "kind": "step", "result": 7}
NAP: Final = {"name": "nap", "kind": "sleep"}


def begun() -> History:
    """A job that has done a step, and its attempt is running."""
    log = History()
    log.expectations = Expectations(tells_steps=frozenset("t"))
    log.tell("ann", "a1", "requested", "pending", cause=log.ask("ann", "a1"))
    log.tell("ann", "a1", "dispatched", "dispatched")
    log.tell("ann", "a1", "attempt_started", "running")
    log.tell("ann", "a1", "step_completed", "running", data=FIRST)
    return log


def doze(log: History, ms: int = NAP_MS, **data: str) -> None:
    log.tell(
        "ann", "a1", "suspended", "awaiting", attempt=0, due_at=instant(log.now_ms + ms),
        data=NAP | data,
    )


def wake(log: History, ms: int = NAP_MS, **data: str) -> None:
    log.now_ms += ms
    log.tell("ann", "a1", "resumed", "pending", data=NAP | data)
    log.tell("ann", "a1", "dispatched", "dispatched")


def end(log: History, told: dict[str, Any] | None = None) -> History:
    log.tell("ann", "a1", "attempt_succeeded", "running")
    result = {"steps": {"first": 7} if told is None else told}
    log.tell("ann", "a1", "succeeded", "succeeded", data={"result": result})
    log.write_rows()
    return log


def right(log: History) -> None:
    doze(log)
    wake(log)
    end(log)


def cancelled_asleep(log: History) -> None:
    doze(log)
    log.tell("ann", "a1", "cancelled", "cancelled")
    log.write_rows()


def redriven(log: History) -> None:
    """A dead letter keeps its steps, and its next run gets them."""
    log.tell("ann", "a1", "attempt_failed", "running")
    log.tell("ann", "a1", "failed", "failed")
    log.tell("ann", "a1", "redriven", "pending", run=2, attempt=0)
    log.tell("ann", "a1", "dispatched", "dispatched", run=2)
    log.tell("ann", "a1", "attempt_succeeded", "running", run=2)
    result = {"steps": {"first": 7}}
    log.tell("ann", "a1", "succeeded", "succeeded", run=2, data={"result": result})
    log.write_rows()


def dead(log: History) -> None:
    log.tell("ann", "a1", "attempt_failed", "running")
    log.tell("ann", "a1", "failed", "failed")
    log.write_rows()
    row = [1, "ann", "a1", START_MS, ["first", "step", 7]]
    log.rows[b"m" + digest_of(("ann", "a1")) + b"first"] = orjson.dumps(row)


@pytest.mark.parametrize("made", [right, cancelled_asleep, redriven, dead])
def test_a_right_log_is_clean(made: Callable[[History], None]) -> None:
    log = begun()
    made(log)
    report = log.check()
    assert report.is_clean, report.text()
    assert report.checked["steps"] == 1


def step_twice(log: History) -> None:
    log.tell("ann", "a1", "step_completed", "running", data=FIRST)


def step_twice_over_runs(log: History) -> None:
    dead(log)
    log.tell("ann", "a1", "redriven", "pending", run=2, attempt=0)
    log.tell("ann", "a1", "dispatched", "dispatched", run=2)
    log.tell("ann", "a1", "attempt_started", "running", run=2)
    log.tell("ann", "a1", "step_completed", "running", run=2, data=FIRST)


def signalled(log: History) -> None:
    data = {"name": "go", "kind": "signal", "value": 7}
    log.tell("ann", "a1", "suspended", "awaiting", attempt=0, data={"name": "go", "kind": "signal"})
    log.tell("ann", "a1", "resumed", "pending", data=data)
    log.tell("ann", "a1", "dispatched", "dispatched")


def another_signal_came_back(log: History) -> None:
    signalled(log)
    log.tell("ann", "a1", "attempt_succeeded", "running")
    result = {"steps": {"first": 7}, "signals": {"go": 8}}
    log.tell("ann", "a1", "succeeded", "succeeded", data={"result": result})


def another_value_came_back(log: History) -> None:
    end(log, {"first": 8})


def a_step_of_nobody(log: History) -> None:
    end(log, {"first": 7, "second": 1})


def row_of_another_value(log: History) -> None:
    dead(log)
    row = [1, "ann", "a1", START_MS, ["first", "step", 8]]
    log.rows[b"m" + digest_of(("ann", "a1")) + b"first"] = orjson.dumps(row)


def row_is_gone(log: History) -> None:
    dead(log)
    del log.rows[b"m" + digest_of(("ann", "a1")) + b"first"]


def woken_too_early(log: History) -> None:
    doze(log)
    wake(log, NAP_MS - 1)


def woken_from_another(log: History) -> None:
    doze(log)
    wake(log, name="another")


def woken_awake(log: History) -> None:
    log.tell("ann", "a1", "resumed", "pending", data=NAP)


def asleep_again(log: History) -> None:
    for _ in range(2):
        doze(log)
        wake(log)
        log.tell("ann", "a1", "attempt_started", "running")


def sleep_spent_an_attempt(log: History) -> None:
    log.tell("ann", "a1", "suspended", "awaiting", due_at=instant(0), data=NAP)
    log.tell("ann", "a1", "resumed", "pending", data=NAP)
    log.tell("ann", "a1", "dispatched", "dispatched", attempt=2)


def dispatched_asleep(log: History) -> None:
    doze(log)
    log.tell("ann", "a1", "dispatched", "dispatched")


def slept_on(log: History) -> None:
    doze(log)


BENT = [
    (step_twice, "remembered_twice"), (step_twice_over_runs, "remembered_twice"),
    (another_signal_came_back, "signal_changed"), (another_value_came_back, "step_changed"),
    (a_step_of_nobody, "step_changed"),
    (row_of_another_value, "memory_disagrees"), (row_is_gone, "memory_disagrees"),
    (woken_too_early, "resumed_early"), (woken_from_another, "resumed_another"),
    (woken_awake, "resumed_unasked"), (asleep_again, "asked_again"),
    (asleep_again, "resumed_twice"), (sleep_spent_an_attempt, "wrong_attempt"),
    (dispatched_asleep, "went_on_without"), (slept_on, "never_resumed"),
]


@pytest.mark.parametrize(("bend", "kind"), BENT, ids=[f"{b.__name__}-{k}" for b, k in BENT])
def test_each_bent_log_is_caught(bend: Callable[[History], None], kind: str) -> None:
    log = begun()
    bend(log)
    report = log.check()
    assert kind in report.kinds, report.text()


# --- ticks ----------------------------------------------------------------------------------------

EVERY_MS: Final = 1_000


class Clockwork(History):
    """A schedule for each second, of which all but the bent ticks are right."""

    def __init__(self, overlap: str = "skip", catch_up: str = "last") -> None:
        super().__init__()
        plan = TickPlan(EVERY_MS, overlap, catch_up, is_first_now=True)
        self.expectations = Expectations(schedules={"s": plan})
        self.told: dict[str, Any] = {
            "spec": {
                "every_ms": EVERY_MS, "overlap": overlap, "catch_up": catch_up,
                "is_first_now": True,
            },
            "created_at": START_MS, "is_orphaned": False, "is_paused": True,
            "changed_at": START_MS + 10 * EVERY_MS,
        }

    def tick(self, number: int, *, tags: tuple[str, ...] = (), is_over: bool = True) -> str:
        """Asked for now; quick, unless it is not to be over."""
        job = f"s@{instant(number * EVERY_MS)}"
        self.tell("schedule:s", job, "requested", "pending", tags=tags)
        if tags:
            self.skip(job, "missed")
        elif is_over:
            self.tell("schedule:s", job, "dispatched", "dispatched")
            self.finish("schedule:s", job)
        return job

    def skip(self, job: str, reason: str) -> None:
        self.tell("schedule:s", job, "skipped", "skipped", reason=reason)

    def ticks(self, *numbers: int) -> None:
        for number in numbers:
            self.now_ms = max(self.now_ms, number * EVERY_MS)
            self.tick(number)

    def kinds(self) -> frozenset[str]:
        def add(evidence: Evidence) -> None:
            value = json.dumps(self.told).encode()
            evidence.schedules = [RawRecord("jobs.schedules", 0, 0, START_MS, b"s", value)]

        report = self.check(add)
        print(report.text())
        return report.kinds


def test_each_instant_once_is_clean() -> None:
    log = Clockwork()
    log.ticks(0, 1, 2)
    log.now_ms = 6_100
    log.tick(5, tags=("missed: 3",))
    log.ticks(6, 7)
    assert log.kinds() == set()


def test_an_instant_that_is_lost_invented_or_twice() -> None:
    log = Clockwork()
    log.ticks(0, 1, 3)
    assert log.kinds() == {"tick_lost"}
    log = Clockwork()
    log.ticks(0, 1)
    log.now_ms = 1_700
    log.tell("schedule:s", f"s@{instant(1_500)}", "requested", "pending")
    log.skip(f"s@{instant(1_500)}", "by hand")
    assert log.kinds() == {"tick_invented"}
    log = Clockwork()
    log.ticks(0, 1, 2)
    log.now_ms = 5_100
    log.tick(4, tags=("missed: 3",))
    log.ticks(5)
    assert log.kinds() == {"tick_twice"}
    log = Clockwork()
    log.ticks(0, 1, 2)
    job = f"s@{instant(2_000)}"
    log.tell(
        "schedule:s", job, "duplicate_ignored", "succeeded", sequence=None,
        state_before="succeeded",
    )
    assert log.kinds() == {"tick_asked_twice"}


def test_a_tick_before_its_instant_and_a_schedule_that_stops_or_changes() -> None:
    log = Clockwork()
    log.tick(1)
    assert "tick_too_early" in log.kinds()
    log = Clockwork()
    log.ticks(0, 1)
    log.told["changed_at"] = START_MS + 60_000
    assert log.kinds() == {"tick_lost"}
    log.told["spec"]["every_ms"] = 2_000
    assert log.kinds() == {"schedule_changed"}


def test_a_tick_that_is_on_time_is_not_missed() -> None:
    log = Clockwork()
    log.ticks(0)
    log.now_ms = 1_900
    log.tick(1, tags=("missed: 1",))
    assert log.kinds() == {"missed_without_need"}
    log = Clockwork(catch_up="all")
    log.ticks(0)
    log.now_ms = 5_000
    log.tick(4, tags=("missed: 4",))
    log.tick(5)
    assert log.kinds() == {"missed_without_need"}


def over(first_ends: bool, second: str) -> frozenset[str]:
    """Two ticks of a schedule that skips: the first has ended or not, the second runs or not."""
    log = Clockwork()
    first = log.tick(0, is_over=first_ends)
    log.now_ms = EVERY_MS
    job = log.tick(1, is_over=second == "runs")
    if second == "skipped":
        log.skip(job, "overlap")
    if not first_ends:
        log.tell("schedule:s", first, "dispatched", "dispatched")
        log.finish("schedule:s", first)
    return log.kinds()


def test_of_a_schedule_that_skips_two_ticks_never_live() -> None:
    assert over(True, "runs") == set()
    assert over(False, "skipped") == set()
    assert "ticks_overlap" in over(False, "runs")
    assert over(True, "skipped") == {"skipped_without_need"}


def test_of_ticks_that_queue_one_runs_at_a_time() -> None:
    log = Clockwork(overlap="queue_all")
    first = log.tick(0, is_over=False)
    log.now_ms = EVERY_MS
    second = log.tick(1, is_over=False)
    for job in (first, second):
        log.tell("schedule:s", job, "dispatched", "dispatched")
        log.finish("schedule:s", job)
    assert log.kinds() == set()
    log = Clockwork(overlap="queue_all")
    log.tick(0, is_over=False)
    log.now_ms = EVERY_MS
    log.tick(1)
    assert "ticks_overlap" in log.kinds()
