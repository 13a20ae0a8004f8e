"""A refused request does not take its id: the mended one runs under it, as the job's next run."""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.unit.core_kit import NOW
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
from tidemill.schemas.words import State
from tidemill.streams.partition import FORGET_EVERY_MS
from tidemill.streams.store.finished import Ended, FinishedJobs
from tidemill.streams.store.jobs import DEDUPE_RETENTION_MS
from tidemill.streams.store.rows import read_job

REFUSALS: Final[dict[str, dict[str, Any]]] = {
    "an unknown field": {"surprise": 1},
    "a wrong value": {"priority": "urgent"},
    "a wrong type of type": {"type": 7},
    "an instant that no clock knows": {"run_at": "tomorrow"},
    "too many attempts": {"max_attempts": 101},
    "a payload that is none": {"payload": []},
}


def ended(scene: Scene, **facts: object) -> list[dict[str, Any]]:
    """The job's attempt succeeds."""
    job = scene.state.jobs[("u", "j")]
    told = outcome(job.key, "succeeded", epoch=job.epoch, run=job.run, **facts)
    return events_in(scene.group(NOW + 9, outcomes(told)))


@pytest.mark.parametrize("broken", REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("apart", ["one group", "two groups", "a restore between", "an abort"])
def test_the_mended_request_runs(broken: dict[str, Any], apart: str) -> None:
    scene = Scene(plain())
    refused, mended = request("j", **broken), request("j", payload={"n": 1})
    if apart == "one group":
        found = events_in(scene.group(NOW, refused, mended))
    else:
        found = events_in(scene.group(NOW, refused))
        if apart == "a restore between":
            scene.restore(NOW)
        elif apart == "an abort":
            scene.group(NOW + 1, mended, is_committed=False)
            assert scene.state.ended(("u", "j")) == Ended(NOW, 0, State.FAILED, True)
            scene._offsets[TOPICS.requested] -= 1
        found += events_in(scene.group(NOW + 2, mended))
    found += ended(scene)
    assert [(each["event"], each["run"], each["sequence"]) for each in found] == [
        ("requested", 1, 1), ("failed", 1, 2), ("requested", 2, 3), ("dispatched", 2, 4),
        ("attempt_succeeded", 2, 5), ("succeeded", 2, 6),
    ]
    assert {each["incarnation"] for each in found} == {NOW}
    assert found[2]["state_before"] == "failed"
    assert (found[2]["type"], found[2]["data"]["payload"]) == ("t", {"n": 1})


def test_a_refusal_that_comes_again_changes_nothing() -> None:
    scene = Scene(plain())
    refused, mended = request("j", surprise=1), request("j")
    scene.group(NOW, refused)
    again = scene.group(NOW + 1, refused)
    assert events_of(again) == ["conflict_ignored"]
    assert len([record for record in again if record[0] == TOPICS.dead]) == 1
    assert events_of(scene.group(NOW + 2, mended)) == ["requested", "dispatched"]
    assert events_of(scene.group(NOW + 3, refused)) == ["conflict_ignored"]
    ended(scene)
    assert events_of(scene.group(NOW + 10, refused)) == ["conflict_ignored"]


def test_the_mended_request_takes_the_id() -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j", surprise=1))
    records = scene.group(NOW + 1, request("j"), request("j"), request("j", payload={"n": 2}))
    wanted = ["requested", "duplicate_ignored", "conflict_ignored", "dispatched"]
    assert events_of(records) == wanted
    ended(scene)
    scene.restore(NOW + 10)
    records = scene.group(NOW + 11, request("j"), request("j", payload={"n": 2}))
    assert events_of(records) == ["duplicate_ignored", "conflict_ignored"]


@pytest.mark.parametrize("type_name", ["t", "not-yet-known"])
def test_a_mended_request_that_waits_and_fails_is_a_dead_letter(type_name: str) -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j", type=type_name, surprise=1))
    first = scene.group(NOW + 1, request("j", type=type_name))
    if type_name == "t":
        error = {"code": "E", "message": "m", "retryable": False}
        last = scene.group(NOW + 2, outcomes(outcome(("u", "j"), "failed", error=error)))
    else:
        assert events_of(first) == ["requested", "deferred"]
        last = scene.group(NOW + 31_000)
    letters = [record for record in last if record[0] == TOPICS.dead]
    assert len(letters) == 1
    assert scene.state.jobs[("u", "j")].is_dead_letter
    word: Input = (TOPICS.commands, b'{"command":"redrive","user_id":"u","job_id":"j"}')
    redriven = events_in(scene.group(NOW + 40_000, word))[0]
    assert (redriven["event"], redriven["run"]) == ("redriven", 3)


@pytest.mark.parametrize("apart", ["one group", "two groups", "a restore between"])
def test_a_mended_request_has_no_better_place_in_line(apart: str) -> None:
    scene = Scene(plain())
    rooms, scene.rooms = scene.rooms, {}  # nobody to run them yet
    early, late = [request(f"a{number}") for number in range(5)], request("z")
    scene.group(NOW, request("j", surprise=1))
    if apart == "one group":
        scene.group(NOW + 1, *early, request("j"), late)
    else:
        scene.group(NOW + 1, *early)
        if apart == "a restore between":
            scene.restore(NOW + 1)
        scene.group(NOW + 2, request("j"), late)
    scene.rooms = rooms
    started: list[str] = []
    for number in range(9):
        records = scene.group(NOW + 10 + number)
        events = events_in(records)
        started += [each["job_id"] for each in events if each["event"] == "dispatched"]
        told = [
            outcome(job.key, "succeeded", epoch=job.epoch, run=job.run)
            for job in scene.state.jobs.values() if job.state is State.DISPATCHED
        ]
        if told:
            events = events_in(scene.group(NOW + 10 + number, outcomes(*told)))
            started += [each["job_id"] for each in events if each["event"] == "dispatched"]
    assert started == ["a0", "a1", "a2", "a3", "a4", "j", "z"]


def test_a_refusal_cannot_be_redriven() -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j", surprise=1))
    word: Input = (TOPICS.commands, b'{"command":"redrive","user_id":"u","job_id":"j"}')
    (event,) = events_in(scene.group(NOW + 1, word))
    assert (event["event"], event["reason"]) == ("command_refused", "already_ended")


@pytest.mark.parametrize("parts", [(1,), (3, 1), (2, 5, 1)])
def test_ids_are_still_forgotten_in_their_order(parts: tuple[int, ...]) -> None:
    """A job that lives again leaves its place in the order, and later takes another one."""
    scene = Scene(plain())
    names = [f"j{number}" for number in range(6)]
    scene.group(NOW, *(request(name, surprise=1) for name in names))
    for number in parts:
        scene.group(NOW + 20_000, request(f"j{number}"))
        job = scene.state.jobs[("u", f"j{number}")]
        scene.group(NOW + 20_001, outcomes(outcome(job.key, "succeeded", epoch=job.epoch)))
    late = NOW + DEDUPE_RETENTION_MS + 1
    scene.group(late, is_committed=False)
    scene.group(late + FORGET_EVERY_MS)
    left = {name for name in names if scene.state.ended(("u", name)) is not None}
    assert left == {f"j{number}" for number in parts}
    scene.group(late + 30_000)
    assert not len(scene.state.finished)
    assert not [key for key in scene.rows if key.startswith(b"j")]


def test_what_is_taken_up_again_comes_back_when_it_is_undone() -> None:
    found = FinishedJobs()
    for number in range(4):
        found.add(b"%d" % number, NOW + number, 0, State.FAILED, is_refused=True)
    found.take_up(b"1")
    assert found.forget_until(NOW + 3, count_max=9, at_most=9) == [b"0", b"2"]
    found.rollback()
    assert [found.get(b"%d" % number) is not None for number in range(4)] == [True] * 4
    assert found.forget_until(NOW + 9, count_max=9, at_most=9) == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize(
    ("row", "is_refused"),
    [
        (b'[-1,"failed",1,0,1,2]', True),
        (b'[-1,"failed",1,7,1,5]', False),  # a dead letter that was forgotten early
        (b'[-1,"failed",1,7,2,2]', False),
        (b'[-1,"cancelled",1,0,1,2]', False),
    ],
)
def test_rows_of_before_tell_what_was_refused(row: bytes, is_refused: bool) -> None:
    found = read_job(row)
    assert isinstance(found, Ended)
    assert found.is_refused == is_refused
