"""What the core asks its policies, and what it does with their answers."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.unit.core_kit import NOW, define
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
from tidemill.schemas.words import EventKind, Reason, State
from tidemill.streams.decision import NeedsNewer
from tidemill.streams.job import Job, JobKey, Spec, WaitKey
from tidemill.streams.job_type import JobType
from tidemill.streams.policies.base import GO, Policy, Verdict, expire, fail, skip, wait
from tidemill.streams.store.state import PartitionState
from tidemill.streams.turn import Turn

ROOM: WaitKey = ("told", "room")
ERROR = {"code": "NO", "message": "it says so", "retryable": False}
AGAIN_MS = 100_000


class Told(Policy):
    """Says of jobs of type `t` what it is told to say, and writes down what it is told of."""

    def __init__(self) -> None:
        super().__init__("told")
        self.at_door: Verdict = GO
        self.at_start: Verdict = GO
        self.after_return: Verdict = GO
        self.delay_ms: int | None = None
        self.why_not: Reason | None = None
        self.asked: list[int] = []  # attempts before the start that it was asked about
        self.changes: list[tuple[str, str]] = []
        self.places: list[JobKey] = []
        self.room = 0

    def concerns(self, job_type: JobType | None) -> bool:
        return job_type is not None and job_type.type == "t"

    def admit(self, turn: Turn, spec: Spec, job_type: JobType | None) -> Verdict:
        return self.at_door

    def may_start(self, turn: Turn, job: Job) -> Verdict:
        self.asked.append(job.attempt)
        return self.at_start

    def may_redrive(self, turn: Turn, job: Job) -> Reason | None:
        return self.why_not

    def may_retry(self, turn: Turn, job: Job, outcome: dict[str, Any]) -> int | None:
        return self.delay_ms

    def may_go_on(self, turn: Turn, job: Job, detail: str | None) -> Verdict:
        return self.after_return

    def on_change(self, turn: Turn, before: Job | None, after: Job) -> None:
        self.changes.append(("" if before is None else before.state.value, after.state.value))

    def on_timer(self, turn: Turn, name: JobKey | WaitKey) -> None:
        assert name == ROOM
        turn.wake(name, self.room, turn.now_ms + AGAIN_MS)

    def place(self, turn: Turn, before: Job | None, after: Job) -> None:
        self.places.append(after.key)

    def clear(self) -> None:
        self.places = []


class Asked:
    """A partition whose policies are joined by `Told`."""

    def __init__(self) -> None:
        self.told = Told()

        def policies(number: int) -> tuple[Policy, ...]:
            self.told = Told()
            return (self.told,)

        self.scene = Scene(plain(), policies=policies)
        self.now_ms = NOW

    def group(self, *inputs: Input) -> list[str]:
        self.now_ms += 10
        return events_of(self.scene.group(self.now_ms, *inputs))

    @property
    def job(self) -> Job:
        return self.scene.state.jobs[("u", "j")]

    def fail_once(self) -> None:
        """One attempt, and the job waits for the next."""
        self.group(request("j"))
        told = outcome(("u", "j"), "failed", retry_after_ms=50)
        assert self.group(outcomes(told)) == ["attempt_failed", "retry_scheduled"]
        assert self.job.state is State.RETRYING


ENDS = [
    (skip(Reason.DUPLICATE), "skipped"),
    (fail(Reason.NOT_RETRYABLE, ERROR), "failed"),
    (expire(Reason.EXPIRED_BEFORE_START), "expired"),
]


@pytest.mark.parametrize(("verdict", "event"), ENDS, ids=("skip", "fail", "expire"))
def test_an_end_at_the_door(verdict: Verdict, event: str) -> None:
    asked = Asked()
    asked.told.at_door = verdict
    assert asked.group(request("j")) == ["requested", event]
    assert asked.told.changes == [("", event)]


@pytest.mark.parametrize(("verdict", "event"), ENDS, ids=("skip", "fail", "expire"))
def test_an_end_before_the_first_attempt(verdict: Verdict, event: str) -> None:
    asked = Asked()
    asked.told.at_start = verdict
    assert asked.group(request("j")) == ["requested", event]


@pytest.mark.parametrize(("verdict", "event"), ENDS, ids=("skip", "fail", "expire"))
def test_an_end_of_a_job_that_was_to_be_tried_again(verdict: Verdict, event: str) -> None:
    asked = Asked()
    asked.fail_once()
    asked.told.at_start = verdict
    assert asked.group() == []
    asked.now_ms += 50
    assert asked.group() == [event]
    assert asked.told.asked == [0, 1]
    assert asked.told.changes[-1] == ("retrying", event)


@pytest.mark.parametrize("is_retry", [False, True])
def test_a_job_waits_in_a_list_and_is_asked_about_again(is_retry: bool) -> None:
    asked = Asked()
    told = asked.told
    if is_retry:
        asked.fail_once()
        asked.now_ms += 50
    told.at_start = wait(ROOM, Reason.RATE_LIMITED, asked.now_ms + 5_000)
    assert asked.group(*([] if is_retry else [request("j")]))[-1:] == ["deferred"]
    assert (asked.job.state, asked.job.waits_for) == (State.SCHEDULED, ROOM)
    asked.now_ms += 5_000
    assert asked.group() == []  # nothing is there yet
    told.at_start, told.room = GO, 1
    asked.now_ms += AGAIN_MS
    assert asked.group() == ["dispatched"]
    assert asked.job.waits_for is None


def test_who_was_woken_too_early_waits_on_in_its_place() -> None:
    asked = Asked()
    told = asked.told
    told.at_start = wait(ROOM, Reason.RATE_LIMITED, asked.now_ms + 5_000)
    names = [("u", name) for name in ("j", "k", "l")]
    asked.group(*(request(name) for _, name in names))
    told.room = 1
    asked.now_ms += 5_000
    assert asked.group() == ["deferred"]
    assert list(asked.scene.engine.schedule.wait_lists[ROOM]) == names


def test_a_wait_survives_a_restore_and_an_undo() -> None:
    asked = Asked()
    asked.told.at_start = wait(ROOM, Reason.RATE_LIMITED, asked.now_ms + 5_000)
    asked.group(request("j"))
    asked.scene.restore(asked.now_ms)
    assert asked.told.places == [("u", "j")]
    asked.told.room = 1
    asked.scene.group(asked.now_ms + 1, is_committed=False)
    assert asked.job.waits_for == ROOM
    assert asked.told.places == [("u", "j")]
    assert asked.group() == ["dispatched"]


def test_the_first_end_counts_before_any_wait() -> None:
    asked = Asked()
    asked.told.at_door = wait(ROOM, Reason.RATE_LIMITED, asked.now_ms)
    assert asked.group(request("j", expires_at=NOW - 1)) == ["requested", "expired"]
    asked.told.at_door = expire(Reason.EXPIRED_BEFORE_START)
    first = request("k", unique_key="a")
    asked.told.at_door = GO
    asked.group(first)
    asked.told.at_door = expire(Reason.EXPIRED_BEFORE_START)
    events = events_in(asked.scene.group(asked.now_ms + 1, request("l", unique_key="a")))
    assert [event["event"] for event in events] == ["requested", "skipped"]


def test_a_policy_may_ask_for_another_delay_and_end_what_is_given_back() -> None:
    asked = Asked()
    asked.group(request("j"))
    asked.told.delay_ms = 7
    told = outcome(("u", "j"), "failed", retry_after_ms=9)
    asked.group(outcomes(told))
    assert asked.job.due_at == asked.now_ms + 9, "the backoff is asked first"
    asked.group()
    asked.told.after_return = fail(Reason.NOT_RETRYABLE, ERROR)
    back = outcome(("u", "j"), "returned", epoch=2, attempt=2, reason="no_free_slot")
    assert asked.group(outcomes(back)) == ["returned", "failed"]
    assert asked.job.is_dead_letter


def test_a_redrive_is_refused_for_a_policy_s_reason() -> None:
    asked = Asked()
    asked.told.at_door = fail(Reason.NOT_RETRYABLE, ERROR)
    asked.group(request("j"))
    asked.told.why_not = Reason.DUPLICATE
    command = {"command": "redrive", "user_id": "u", "job_id": "j"}
    (event,) = events_in(
        asked.scene.group(asked.now_ms, (TOPICS.commands, orjson.dumps(command)))
    )
    assert (event["event"], event["reason"]) == (EventKind.COMMAND_REFUSED, Reason.DUPLICATE)
    asked.told.why_not = None
    assert "redriven" in asked.group((TOPICS.commands, orjson.dumps(command)))


def ids_of(state_type: JobType, **fields: Any) -> list[str]:
    spec = Spec("u", "j", "t", "q", "medium", b"{}", NOW, 0, **fields)
    return [policy.id for policy in state_type.policies_for(spec)]


def test_a_plain_job_of_a_plain_type_is_asked_about_by_nobody() -> None:
    scene = Scene()
    limited = [{"limit": 1, "window_ms": 9, "over": "delay"}]
    found: dict[str, list[list[str]]] = {}
    for name, definition in {
        "plain": define(), "limited": define(limits=limited), "unique": define(unique_by="user"),
    }.items():
        scene.state.define(definition)
        made = scene.state.job_type("t")
        assert made is not None
        found[name] = [ids_of(made), ids_of(made, unique_key="k"), ids_of(made, expires_at=1)]
    asked = ["schedules", "uniqueness", "expiry"]
    all_of_them = ["schedules", "uniqueness", "expiry", "rate_limit"]
    assert found == {
        "plain": [[], asked, asked],
        "limited": [["rate_limit"], all_of_them, all_of_them],
        "unique": [["uniqueness"], asked, asked],
    }
    assert [one.id for one in scene.state.policies.of_unknown] == [*asked, "unknown_type"]


def test_ids_are_words_and_no_two_are_alike() -> None:
    ids = [policy.id for policy in Scene().state.policies.all]
    assert len(set(ids)) == len(ids)
    assert all(one.replace("_", "").isalpha() and one.islower() for one in ids)


def test_a_job_that_waits_for_what_this_version_does_not_know_stops_the_start() -> None:
    asked = Asked()
    asked.told.at_start = wait(ROOM, Reason.RATE_LIMITED, asked.now_ms + 5_000)
    asked.group(request("j"))
    older = PartitionState()
    for key, value in asked.scene.rows.items():
        older.load(key, value)
    with pytest.raises(NeedsNewer, match="a job that waits for 'told'"):
        older.loaded()
