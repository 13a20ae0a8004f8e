"""What decides between two ends: limits, keys, attempts, instants, bounds. And the fold."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.core_kit import (
    CANCEL,
    CAUSE,
    FATAL,
    KNOWN,
    NOW,
    REDRIVE,
    WAYS,
    after,
    arranged,
    decide,
    define,
    fields_of,
    fold,
    job_in,
    refuse,
    report,
    submit,
)
from tidemill.schemas.requests import RESULT_BYTES_MAX
from tidemill.schemas.wire import DELAY_MS_MAX, BackoffSpec
from tidemill.schemas.words import Reason, State
from tidemill.streams.absences import UNKNOWN_TYPE_WAIT_MS
from tidemill.streams.commands import CoreCommand, Dispatch, Redrive, Rescue, Resolve
from tidemill.streams.decision import Accepted, InvalidTransition, Kept, Rejected, repeat_of
from tidemill.streams.decisions import EventBuilder
from tidemill.streams.job import Job
from tidemill.streams.limits import LimitState
from tidemill.streams.policies.rescue import RESCUES_MAX
from tidemill.streams.turn import Turn

LATER = NOW + 5_000
ONE_A_MINUTE = {"limit": 1, "window_ms": 60_000}
SKIP = define(limits=[{**ONE_A_MINUTE, "over": "skip"}])
DELAY = define(limits=[{**ONE_A_MINUTE, "over": "delay"}])
UNKNOWN = arranged()
HELD = ("u", "another")
LOST = Rescue(Reason.WORKER_LOST)


def told(job: Job | None, command: CoreCommand, around: Turn = KNOWN) -> str:
    """The decision in words: events with their reasons, or the rejection."""
    decision = decide(job, command, NOW, around)
    if isinstance(decision, Rejected):
        return f"rejected: {decision.reason}"
    if isinstance(decision, Kept):
        return "kept"
    return ", ".join(
        event.kind + (f" ({event.reason})" if event.reason else "") for event in decision.events
    )


@pytest.mark.parametrize(
    ("fields", "around", "expected"),
    [
        ({}, KNOWN, "requested"),
        ({"run_at": LATER}, KNOWN, "requested, scheduled (run_at)"),
        ({"run_at": NOW}, KNOWN, "requested"),
        ({"expires_at": NOW}, KNOWN, "requested, expired (expired_before_start)"),
        ({"expires_at": NOW + 1}, KNOWN, "requested"),
        ({"unique_key": "k"}, KNOWN, "requested"),
        ({"unique_key": "k"}, arranged(define(), holder=HELD), "requested, skipped (duplicate)"),
        ({"unique_key": "k"}, arranged(define(), holder=("u", "j")), "requested"),
        ({}, arranged(define(unique_by="user"), holder=HELD), "requested, skipped (duplicate)"),
        ({}, arranged(SKIP), "requested"),
        ({}, arranged(SKIP, used=LimitState(1, ())), "requested, skipped (rate_limited)"),
        ({}, arranged(SKIP, used=LimitState(0, (NOW,))), "requested, skipped (rate_limited)"),
        ({}, arranged(SKIP, used=LimitState(0, (NOW - 60_000,))), "requested"),
        ({}, arranged(DELAY, used=LimitState(0, (NOW,))), "requested"),  # held back when dispatched
        ({}, UNKNOWN, "requested, deferred (unknown_type)"),
        ({"expires_at": NOW}, UNKNOWN, "requested, expired (expired_before_start)"),
        ({"unique_key": "k"}, arranged(holder=HELD), "requested, skipped (duplicate)"),
    ],
)
def test_submit(fields: dict[str, Any], around: Turn, expected: str) -> None:
    assert told(None, submit(**fields), around) == expected


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ({"error": FATAL}, "attempt_failed, failed (not_retryable)"),
        ({}, "attempt_failed, retry_scheduled"),
        ({"error": {}}, "attempt_failed, retry_scheduled"),
        ({"retry_after_ms": 0}, "attempt_failed, retry_scheduled"),
    ],
)
def test_a_failed_attempt(outcome: dict[str, Any], expected: str) -> None:
    assert told(job_in(State.DISPATCHED), report("failed", **outcome)) == expected


def test_attempts_run_out() -> None:
    around = arranged(define(max_attempts=2))
    job = after(None, submit(), Dispatch(), report("failed"), Dispatch(), around=around)
    assert job.attempt == 2
    assert told(job, report("failed", 2), around) == (
        "attempt_failed, failed (attempts_exhausted)"
    )


@pytest.mark.parametrize(
    ("asked_ms", "expected_ms"),
    [(0, 0), (-5, 0), (700, 700), (2**63, DELAY_MS_MAX)],
)
def test_a_retry_waits_as_long_as_the_handler_asked(asked_ms: int, expected_ms: int) -> None:
    job = after(job_in(State.DISPATCHED), report("failed", retry_after_ms=asked_ms))
    assert job.due_at == NOW + expected_ms


def test_a_retry_waits_by_the_policy_and_always_the_same() -> None:
    policy = BackoffSpec(base_ms=1_000, factor=2.0, jitter=0.5, cap_ms=60_000)
    around = arranged(define(backoff=policy.model_dump()))
    dispatched = job_in(State.DISPATCHED)
    first = after(dispatched, report("failed"), around=around)
    again = after(dispatched, report("failed"), around=around)
    assert first.due_at == again.due_at
    assert first.due_at is not None
    assert 500 <= first.due_at - NOW <= 1_500


def test_a_retry_of_a_type_whose_definition_is_gone_still_waits() -> None:
    job = after(job_in(State.DISPATCHED), report("failed"), around=UNKNOWN)
    assert job.state is State.RETRYING


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ("x" * RESULT_BYTES_MAX, "RESULT_TOO_LARGE"),
        ({"x": {1, 2}}, "RESULT_NOT_JSON"),
        (2**70, "RESULT_NOT_JSON"),
    ],
)
def test_a_result_out_of_bounds_fails_the_job_with_a_reason(result: Any, code: str) -> None:
    decision = decide(job_in(State.RUNNING), report("succeeded", result=result), NOW, KNOWN)
    assert isinstance(decision, Accepted)
    assert [event.kind.value for event in decision.events] == ["attempt_failed", "failed"]
    assert decision.job.error is not None
    assert decision.job.error["code"] == code
    assert decision.job.is_dead_letter


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (report("failed"), "attempt_failed, cancelled (cancelled_by_command)"),
        (report("failed", error=FATAL), "attempt_failed, cancelled (cancelled_by_command)"),
        (report("returned"), "returned (no_free_slot), cancelled (cancelled_by_command)"),
        (report("succeeded"), "attempt_succeeded, succeeded"),
        (report("skipped"), "skipped (skipped by its handler)"),
        (LOST, "rescued (worker_lost), cancelled (cancelled_by_command)"),
        (CANCEL, "rejected: same_body"),
    ],
)
def test_a_job_that_was_asked_to_stop(command: CoreCommand, expected: str) -> None:
    assert told(after(job_in(State.RUNNING), CANCEL), command) == expected


def test_a_rescue_spends_no_attempt_and_the_fourth_ends_the_job() -> None:
    job = job_in(State.RUNNING)
    for rescues in range(1, RESCUES_MAX + 1):
        job = after(job, LOST)
        assert (job.state, job.attempt, job.rescues) == (State.PENDING, 0, rescues)
        job = after(job, Dispatch())
    assert told(job, LOST) == "rescued (worker_lost), failed (worker_lost)"
    ended = after(job, LOST)
    assert ended.error is not None
    assert ended.error["code"] == "WORKER_LOST"
    assert after(ended, REDRIVE).rescues == 0


@pytest.mark.parametrize(
    ("fields", "around", "expected"),
    [
        ({}, KNOWN, "scheduled"),
        ({"run_at": LATER}, KNOWN, "scheduled (run_at)"),
        ({}, arranged(SKIP, used=LimitState(1, ())), "skipped (rate_limited)"),
        ({"unique_key": "k"}, arranged(define(), holder=HELD), "skipped (duplicate)"),
        ({}, arranged(define(unique_by="user"), holder=HELD), "skipped (duplicate)"),
        ({}, UNKNOWN, "failed (not_retryable)"),
    ],
)
def test_the_wait_for_a_type_is_over(
    fields: dict[str, Any], around: Turn, expected: str
) -> None:
    waiting = after(None, submit(**fields), around=UNKNOWN)
    assert waiting.due_at == NOW + UNKNOWN_TYPE_WAIT_MS
    assert told(waiting, Resolve(around.job_type("t")), around) == expected


def test_a_known_type_fills_in_what_the_request_left_open() -> None:
    around = arranged(define(queue="q", max_attempts=7, timeout_ms=9, unique_by="user"))
    known = after(None, submit(), around=around)
    resolved = after(
        after(None, submit(), around=UNKNOWN), Resolve(around.job_type("t")), around=around
    )
    for spec in (known.spec, resolved.spec):
        assert (spec.queue, spec.max_attempts, spec.timeout_ms) == ("q", 7, 9)
        assert spec.unique_key == "\x1ftype:t"
    asked = submit(queue="mine", max_attempts=1, timeout_seconds=0.0001, unique_key="k")
    own = after(None, asked, around=around).spec
    assert (own.queue, own.max_attempts, own.timeout_ms, own.unique_key) == ("mine", 1, 1, "k")


@pytest.mark.parametrize(
    ("job", "around", "expected"),
    [
        (job_in(State.FAILED), KNOWN, "redriven (operator)"),
        (after(None, submit(unique_key="k"), Dispatch(), report("failed", error=FATAL)),
         arranged(define(), holder=HELD), "rejected: duplicate"),
        (after(None, submit(unique_key="k"), Dispatch(), report("failed", error=FATAL)),
         KNOWN, "redriven (operator)"),
        # Nobody knew its type: a queue of its own does not make it known.
        (after(after(None, submit(queue="mine"), around=UNKNOWN), Resolve(None)),
         UNKNOWN, "redriven (operator), deferred (unknown_type)"),
    ],
)
def test_redrive(job: Job, around: Turn, expected: str) -> None:
    assert told(job, REDRIVE, around) == expected


def test_a_redriven_job_starts_afresh() -> None:
    failed = job_in(State.FAILED)
    assert failed is not None
    again = decide(failed, REDRIVE, NOW + 100, KNOWN)
    assert isinstance(again, Accepted)
    job = again.job
    assert (job.run, job.attempt, job.epoch, job.queued_at) == (2, 0, 1, NOW + 100)
    assert (job.error, job.reason, job.finished_at, job.started_at) == (None, None, None, None)
    assert again.events[0].run == 2
    assert after(job, Dispatch()).epoch == 2


def test_a_refused_request_cannot_be_redriven() -> None:
    """Its payload was never kept."""
    refused = after(None, refuse())
    assert refused.state is State.FAILED
    assert not refused.is_dead_letter
    assert told(refused, REDRIVE) == "rejected: already_ended"


def test_held_limits_are_kept_with_the_job_until_its_first_dispatch() -> None:
    waiting = after(None, submit(), around=arranged(SKIP))
    assert waiting.holds_limit
    assert not after(waiting, Dispatch()).holds_limit
    assert not after(waiting, CANCEL).holds_limit
    assert not after(None, submit(), around=arranged(DELAY)).holds_limit


def test_waiting_and_running_times_are_the_worker_s_where_they_are_believable() -> None:
    job = job_in(State.DISPATCHED)
    quick = decide(
        job, report("succeeded", started_at=NOW + 30, finished_at=NOW + 45), NOW + 60, KNOWN
    )
    assert isinstance(quick, Accepted)
    assert [(event.wait_ms, event.run_ms) for event in quick.events] == [(30, 15)] * 2
    for nonsense in (-1, 0, True, NOW + 10**9, None):
        odd = decide(job, report("succeeded", started_at=nonsense), NOW + 60, KNOWN)
        assert isinstance(odd, Accepted)
        assert odd.job.started_at == NOW + 60
        assert (odd.events[0].wait_ms, odd.events[0].run_ms) == (60, 0)


def test_what_a_worker_says_is_kept_within_bounds() -> None:
    job = job_in(State.RUNNING)
    wide = {"code": "C" * 999, "message": "m" * 99_999, "retryable": 0}
    failed = decide(job, report("failed", error=wide), NOW, KNOWN)
    assert isinstance(failed, Accepted)
    assert failed.job.error == {"code": "C" * 128, "message": "m" * 2_000, "retryable": False}
    odd = decide(job, report("failed", error={"code": [[]], "message": {}}), NOW, KNOWN)
    assert isinstance(odd, Accepted)
    assert odd.job.error == {"code": "HANDLER_ERROR", "message": "", "retryable": True}
    assert told(job, report("skipped", reason=["x"])) == "skipped (skipped by its handler)"
    assert told(job, report("returned", reason="worker_stopping")) == "returned (worker_stopping)"
    half = {"percent": 50, "stage": "s" * 999, "surprise": [1]}
    progressed = decide(job, report("progressed", progress=half), NOW, KNOWN)
    assert isinstance(progressed, Accepted)
    assert progressed.events[0].data == {"percent": 50, "stage": "s" * 500, "message": None}
    nothing = decide(job, report("progressed", progress="half"), NOW, KNOWN)
    assert isinstance(nothing, Accepted)
    assert nothing.events[0].data == {"percent": None, "stage": None, "message": None}


@pytest.mark.parametrize("state", State)
def test_replay_gives_the_live_job(state: State) -> None:
    events = []
    job: Job | None = None
    for command in WAYS[state]:
        decision = decide(job, command, NOW, KNOWN)
        assert isinstance(decision, Accepted)
        events += decision.events
        job = decision.job
    assert job is not None
    replayed = fold(events)
    for name in fields_of(Job):
        assert getattr(replayed, name) == getattr(job, name), name


def test_a_repeat_of_an_ended_job() -> None:
    assert repeat_of(1, 1).audit == "duplicate_ignored"
    assert repeat_of(1, 2).audit == "conflict_ignored"


def test_a_story_without_a_job_is_a_bug() -> None:
    with pytest.raises(InvalidTransition, match="no such job"):
        EventBuilder(None, NOW, CAUSE).done()


def test_nothing_is_shared_between_a_job_and_what_follows_it() -> None:
    job = job_in(State.FAILED)
    assert job is not None
    copy = {name: getattr(job, name) for name in fields_of(Job)}
    after(job, Redrive(job.key, None, None, CAUSE))
    assert {name: getattr(job, name) for name in fields_of(Job)} == copy
