"""Handlers that sleep and remember, as one partition sees them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.unit.core_kit import NOW, SLEEPS
from tests.unit.partition_kit import (
    TOPICS,
    Input,
    Scene,
    events_in,
    events_of,
    outcome,
    outcomes,
    plain,
    request,
)
from tidemill.schemas.batch_builder import OutRecord
from tidemill.schemas.requests import MEMORY_BYTES_MAX, STEP_BYTES_MAX
from tidemill.schemas.words import State
from tidemill.streams import suspensions
from tidemill.streams.store.memory import Memory
from tidemill.streams.store.state import PartitionState

KEY = ("u", "j")
NAP_MS = 60_000


def told(kind: str, epoch: int = 1, **facts: Any) -> Input:
    return outcomes(outcome(KEY, kind, **{"epoch": epoch, **facts}))


def step(name: str, result: Any, epoch: int = 1) -> Input:
    return told("stepped", epoch, name=name, result=result)


def sent(records: list[OutRecord]) -> list[dict[str, Any]]:
    """The jobs of the ready packs."""
    packs = [orjson.loads(v or b"") for t, _, _, v, _ in records if t.startswith("jobs.ready")]
    return [job for pack in packs for job in pack["jobs"]]


def begun() -> Scene:
    scene = Scene(plain())
    assert len(sent(scene.group(NOW, request("j")))) == 1
    return scene


def asleep() -> Scene:
    """A job that did a step and sleeps."""
    scene = begun()
    scene.group(NOW + 10, told("started"), step("load", {"n": 1}), told("suspended", waits=SLEEPS))
    assert scene.state.jobs[KEY].state is State.AWAITING
    return scene


def test_a_sleeping_job_holds_no_slot_and_the_same_attempt_goes_on_with_what_it_knows() -> None:
    scene = asleep()
    assert scene.in_flight() == []
    assert events_of(scene.group(NOW + NAP_MS)) == []
    woken = scene.group(NOW + 10 + NAP_MS)
    assert events_of(woken) == ["resumed", "dispatched"]
    (job,) = sent(woken)
    assert (job["attempt"], job["epoch"]) == (1, 2)
    assert job["memory"] == [["load", "step", {"n": 1}], ["nap", "sleep", None]]
    ended = scene.group(NOW + 11 + NAP_MS, told("succeeded", 2, result=1))
    assert events_of(ended) == ["attempt_succeeded", "succeeded"]
    assert [key for key in scene.rows if key[:1] == b"m"] == []


def test_the_story_says_what_it_waits_for() -> None:
    scene = begun()
    (event,) = events_in(scene.group(NOW + 10, told("suspended", waits=SLEEPS)))
    assert (event["event"], event["reason"], event["state_after"]) == (
        "suspended", "sleeping", "awaiting"
    )
    assert event["data"] == {"name": "nap", "kind": "sleep"}
    assert event["due_at"] is not None


@pytest.mark.parametrize("restores", range(4))
def test_a_new_owner_at_any_point_knows_the_same(restores: int) -> None:
    """Between any two of: the step, the suspension, the instant, the end."""
    scene = begun()
    inputs = [(NOW + 1, told("started")), (NOW + 2, step("load", 7)),
              (NOW + 3, told("suspended", waits=SLEEPS))]
    for index, (now_ms, given) in enumerate(inputs):
        scene.group(now_ms, given, is_committed=False)
        if index == restores:
            scene.restore(now_ms)
        scene.group(now_ms, given)
    if restores == 3:
        scene.restore(NOW + 4)
    (job,) = sent(scene.group(NOW + 3 + NAP_MS))
    assert job["memory"] == [["load", "step", 7], ["nap", "sleep", None]]


def test_an_aborted_group_takes_back_what_was_remembered() -> None:
    scene = begun()
    scene.group(NOW + 1, told("started"), step("load", 7), is_committed=False)
    assert not scene.state.memory.by_job
    scene.group(NOW + 1, told("started"), step("load", 8))
    scene.group(NOW + 2, told("suspended", waits=SLEEPS), is_committed=False)
    assert scene.state.jobs[KEY].state is State.RUNNING
    assert scene.state.memory.has(scene.state.jobs[KEY], "load")


def test_a_retry_and_a_redrive_keep_results_and_the_end_drops_them() -> None:
    scene = begun()
    error = {"code": "X", "message": "no", "retryable": True}
    failed = told("failed", error=error, retry_after_ms=0)
    (retried,) = sent(scene.group(NOW + 1, told("started"), step("load", 7), failed))
    assert (retried["attempt"], retried["memory"]) == (2, [["load", "step", 7]])
    fatal = {"code": "X", "message": "no", "retryable": False}
    scene.group(NOW + 5_001, told("failed", 2, error=fatal))
    scene.restore(NOW + 5_002)
    command = {"command": "redrive", "user_id": "u", "job_id": "j"}
    (again,) = sent(scene.group(NOW + 5_003, (TOPICS.commands, orjson.dumps(command))))
    assert (again["run"], again["memory"]) == (2, [["load", "step", 7]])


def test_the_first_result_of_a_step_counts_and_a_stale_one_does_not() -> None:
    scene = begun()
    records = scene.group(NOW + 1, told("started"), step("a", 1), step("a", 2), step("b", 3, 9))
    assert events_of(records) == ["attempt_started", "step_completed", "outcome_ignored"]
    assert list(scene.state.memory.by_job[KEY]) == ["a"]


def test_a_cancel_ends_a_sleeping_job_at_once() -> None:
    scene = asleep()
    command = {"command": "cancel", "user_id": "u", "job_id": "j"}
    assert events_of(scene.group(NOW + 20, (TOPICS.commands, orjson.dumps(command)))) == [
        "cancelled"
    ]
    assert not scene.state.memory.by_job
    assert events_of(scene.group(NOW + 10 + NAP_MS)) == []


def test_a_job_that_was_asked_to_stop_does_not_sleep() -> None:
    scene = begun()
    command = {"command": "cancel", "user_id": "u", "job_id": "j"}
    scene.group(NOW + 1, told("started"), (TOPICS.commands, orjson.dumps(command)))
    assert events_of(scene.group(NOW + 2, told("suspended", waits=SLEEPS))) == [
        "suspended", "cancelled"
    ]


def test_a_sleeping_job_holds_its_unique_key() -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j", unique_key="k"))
    scene.group(NOW + 1, told("suspended", waits=SLEEPS))
    assert events_of(scene.group(NOW + 2, request("k2", unique_key="k")), "k2") == [
        "requested", "skipped"
    ]


@pytest.mark.interpreted
def test_a_run_suspends_so_often_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspensions, "SUSPENSIONS_MAX", 2)
    scene = begun()
    now_ms = NOW
    for number in range(1, 4):
        waits = {"kind": "sleep", "name": f"nap {number}", "for_ms": 1_000}
        told_now = events_of(scene.group(now_ms + 1, told("suspended", number, waits=waits)))
        now_ms += 2_000
        scene.group(now_ms)
    assert told_now == ["suspended", "failed"]
    assert scene.state.jobs[KEY].error == suspensions._too_many_error()


def test_a_sleep_that_is_over_is_over_when_it_is_asked_for_again() -> None:
    scene = asleep()
    scene.group(NOW + 10 + NAP_MS)
    again = scene.group(NOW + 20 + NAP_MS, told("suspended", 2, waits=SLEEPS))
    assert events_of(again) == ["suspended", "resumed", "dispatched"]


@pytest.mark.parametrize(
    "facts",
    [
        {"kind": "suspended"}, {"kind": "suspended", "waits": {"kind": "moon", "name": "n"}},
        {"kind": "suspended", "waits": {"kind": "sleep", "name": "n", "for_ms": -1}},
        {"kind": "suspended", "waits": {"kind": "sleep", "name": "n", "for_ms": 10**15}},
        {"kind": "suspended", "waits": {"kind": "sleep", "name": "", "for_ms": 1}},
        {"kind": "stepped"}, {"kind": "stepped", "name": 7}, {"kind": "stepped", "name": "a\n"},
    ],
)
def test_what_no_worker_says_is_a_dead_letter(facts: dict[str, Any]) -> None:
    scene = begun()
    records = scene.group(NOW + 1, outcomes({**outcome(KEY, "x"), **facts}))
    assert [topic for topic, *_ in records if topic == TOPICS.dead] == [TOPICS.dead]
    assert scene.state.jobs[KEY].state is State.DISPATCHED


def test_a_step_beyond_the_bounds_is_not_remembered() -> None:
    scene = begun()
    scene.group(NOW + 1, told("started"))
    records = scene.group(NOW + 2, step("large", "x" * STEP_BYTES_MAX))
    assert events_of(records) == ["outcome_ignored"]
    fits = "x" * (STEP_BYTES_MAX - 2)
    for number in range(MEMORY_BYTES_MAX // STEP_BYTES_MAX + 1):
        scene.group(NOW + 3, step(f"step {number}", fits))
    assert scene.state.memory.size_of(KEY) <= MEMORY_BYTES_MAX + 1_000


def test_rows_of_jobs_that_were_never_suspended_are_as_before() -> None:
    scene = begun()
    rows = [value for key, value in scene.rows.items() if key[:1] == b"j"]
    assert all(row.startswith(b"[2,") for row in rows)
    scene.group(NOW + 1, told("suspended", waits=SLEEPS))
    (row,) = [value for key, value in scene.rows.items() if key[:1] == b"j"]
    assert row.startswith(b"[3,")


MONTH_MS = 31 * 86_400_000


def dead() -> Scene:
    """A dead letter that remembers a step."""
    scene = begun()
    fatal = {"code": "X", "message": "no", "retryable": False}
    scene.group(NOW + 1, told("started"), step("a", 1), told("failed", error=fatal))
    assert scene.state.memory.by_job
    return scene


def remembered(scene: Scene) -> list[bytes]:
    """Rows of what jobs remember."""
    return [key for key in scene.rows if key[:1] == b"m"]


def test_what_a_forgotten_dead_letter_remembered_goes_with_it() -> None:
    scene = dead()
    scene.group(NOW + MONTH_MS, is_committed=False)
    assert scene.state.memory.by_job
    scene.group(NOW + MONTH_MS + 10_000)
    assert not scene.state.memory.by_job
    assert remembered(scene) == []


def test_what_an_earlier_version_has_left_of_a_forgotten_one_goes() -> None:
    scene = dead()
    for key in [key for key in scene.rows if key[:1] == b"j"]:
        del scene.rows[key]
    scene.restore(NOW + 2)
    assert remembered(scene)
    scene.group(NOW + 10_000)
    assert not scene.state.memory.by_job
    assert remembered(scene) == []


def test_memory_is_a_table_of_its_own() -> None:
    assert isinstance(PartitionState().memory, Memory)
