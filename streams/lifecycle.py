"""The life of a job: which event may follow which state, and who decides it.

Owns `TRANSITIONS`, `decide`, `evolve` and `react`. Refuses to know partitions, topics, offsets,
timers' heaps and the order among waiting jobs: `streams.partition` asks, this module answers.

How to read it: `TRANSITIONS` is the law. `decide` turns a command into the events that it causes,
or into a rejection with a reason. `evolve` folds one event into a job and is the only writer of
`Job`. `react` names what the edge must write because of an event.
"""

from __future__ import annotations

from typing import Any, Final, assert_never

import orjson

from schemas.event_writer import Event
from schemas.words import (
    IN_FLIGHT_STATES,
    TERMINAL_KINDS,
    TERMINAL_STATES,
    EventKind,
    Reason,
    State,
)
from streams import admission, attempts
from streams.admission import Situation
from streams.commands import (
    Cancel,
    Cause,
    CoreCommand,
    Defer,
    Dispatch,
    Expire,
    Forget,
    Redrive,
    Refuse,
    Report,
    Rescue,
    Resolve,
    Submit,
)
from streams.decision import (
    EFFECTS,
    Accepted,
    Decision,
    Effect,
    InvalidTransition,
    Kept,
    Rejected,
    repeat_of,
)
from streams.folds import GIVES_BACK, fold_dispatched, fold_other
from streams.job import Job, Spec, Worker
from streams.store.kept_cancels import KeptCancel

_S, _E = State, EventKind
TRANSITIONS: Final[dict[tuple[State | None, EventKind], State]] = {
    (None, _E.REQUESTED): _S.PENDING,
    # Waiting.
    (_S.PENDING, _E.SCHEDULED): _S.SCHEDULED,
    (_S.PENDING, _E.DEFERRED): _S.SCHEDULED,
    (_S.SCHEDULED, _E.SCHEDULED): _S.SCHEDULED,
    (_S.SCHEDULED, _E.DEFERRED): _S.SCHEDULED,
    (_S.RETRYING, _E.DEFERRED): _S.SCHEDULED,
    (_S.PENDING, _E.DISPATCHED): _S.DISPATCHED,
    (_S.SCHEDULED, _E.DISPATCHED): _S.DISPATCHED,
    (_S.RETRYING, _E.DISPATCHED): _S.DISPATCHED,
    # In flight. A quick job reports only its end, so the end may follow `dispatched`.
    (_S.DISPATCHED, _E.ATTEMPT_STARTED): _S.RUNNING,
    (_S.DISPATCHED, _E.ATTEMPT_SUCCEEDED): _S.RUNNING,
    (_S.DISPATCHED, _E.ATTEMPT_FAILED): _S.RUNNING,
    (_S.RUNNING, _E.PROGRESSED): _S.RUNNING,
    (_S.RUNNING, _E.ATTEMPT_SUCCEEDED): _S.RUNNING,
    (_S.RUNNING, _E.ATTEMPT_FAILED): _S.RUNNING,
    (_S.RUNNING, _E.RETRY_SCHEDULED): _S.RETRYING,
    # Given back: no attempt is spent.
    (_S.DISPATCHED, _E.RETURNED): _S.PENDING,
    (_S.RUNNING, _E.RETURNED): _S.PENDING,
    (_S.DISPATCHED, _E.RESCUED): _S.PENDING,
    (_S.RUNNING, _E.RESCUED): _S.PENDING,
    # A job in flight can only be asked to stop.
    (_S.DISPATCHED, _E.CANCEL_REQUESTED): _S.DISPATCHED,
    (_S.RUNNING, _E.CANCEL_REQUESTED): _S.RUNNING,
    # Ends.
    (_S.RUNNING, _E.SUCCEEDED): _S.SUCCEEDED,
    (_S.RUNNING, _E.FAILED): _S.FAILED,
    (_S.RUNNING, _E.CANCELLED): _S.CANCELLED,
    (_S.RUNNING, _E.SKIPPED): _S.SKIPPED,
    (_S.DISPATCHED, _E.SKIPPED): _S.SKIPPED,
    (_S.PENDING, _E.SKIPPED): _S.SKIPPED,
    (_S.PENDING, _E.FAILED): _S.FAILED,
    (_S.PENDING, _E.CANCELLED): _S.CANCELLED,
    (_S.PENDING, _E.EXPIRED): _S.EXPIRED,
    (_S.SCHEDULED, _E.SKIPPED): _S.SKIPPED,
    (_S.SCHEDULED, _E.FAILED): _S.FAILED,
    (_S.SCHEDULED, _E.CANCELLED): _S.CANCELLED,
    (_S.SCHEDULED, _E.EXPIRED): _S.EXPIRED,
    (_S.RETRYING, _E.CANCELLED): _S.CANCELLED,
    # A dead letter may run again, and a refused request does not take its id: a mended one runs.
    (_S.FAILED, _E.REDRIVEN): _S.PENDING,
    (_S.FAILED, _E.REQUESTED): _S.PENDING,
}

# The same by kind: two quick look-ups instead of one by a new pair.
_MOVES: Final[dict[EventKind, dict[State | None, State]]] = {
    kind: {before: after for (before, of), after in TRANSITIONS.items() if of is kind}
    for kind in EventKind
}

# By names of this module: compiled code reads those without a look-up.
_RUNNING: Final = _S.RUNNING
_REQUESTED: Final = _E.REQUESTED
_DISPATCHED: Final = _E.DISPATCHED
_ATTEMPT_SUCCEEDED: Final = _E.ATTEMPT_SUCCEEDED
_SUCCEEDED: Final = _E.SUCCEEDED
_REDRIVEN: Final = _E.REDRIVEN
_Fragment: Final = orjson.Fragment

RESCUES_MAX: Final = 3  # per run; a job that kills its workers must not do so for ever
UNKNOWN_TYPE_WAIT_MS: Final = 30_000  # ms that a job waits for a worker to tell of its type


# --- the fold -----------------------------------------------------------------------------------

def evolve(job: Job | None, event: Event) -> Job:
    """The job after `event`. Pure: the argument stays as it was.

    Raises InvalidTransition where TRANSITIONS has no entry: that is a bug, never an input's fault.
    """
    kind = event.kind
    state = _MOVES[kind].get(job.state if job is not None else None)
    if state is None or state is not event.state_after:
        raise InvalidTransition(job, kind)
    if kind is _REQUESTED or job is None:
        holds_limit = bool(event.data and event.data.get("holds_limit"))
        if job is None:
            return Job.first(event.spec, state, holds_limit=holds_limit)
        return job.begun_again(event.spec, state, event.occurred_at, holds_limit=holds_limit)
    new = job.moved_to(state)
    if kind is _DISPATCHED:
        fold_dispatched(new, event)
    elif kind in TERMINAL_KINDS:
        new.finished_at = event.occurred_at
        new.reason = event.reason
        new.due_at = None
        new.holds_limit = False
        if event.error is not None:
            new.error = event.error
    else:
        fold_other(new, kind, event)
    return new


def react(event: Event) -> tuple[Effect, ...]:
    """What the edge writes beside the event itself."""
    return EFFECTS.get(event.kind, ())


# --- decisions ----------------------------------------------------------------------------------

class Story:
    """Collects the events of one decision, each from the job as the one before left it."""

    __slots__ = ("_cause", "_now", "events", "job")

    def __init__(self, job: Job | None, now: int, cause: Cause | None) -> None:
        self.job = job
        self.events: list[Event] = []
        self._now = now
        self._cause = cause

    def begin(self, spec: Spec, data: dict[str, Any] | None) -> None:
        """The first event of a job, or of its next run after a request that was refused."""
        job = self.job
        event = Event(
            _REQUESTED, spec.user_id, spec.job_id, spec.type, spec.queue, spec.priority,
            spec.requested_at, 1 if job is None else job.run + 1,
            1 if job is None else job.sequence + 1, 0, 0 if job is None else job.epoch, self._now,
            None if job is None else job.state, _S.PENDING,
            cause=self._cause, data=data, spec=spec, labels=spec.labels,
        )
        self.job = evolve(job, event)
        self.events.append(event)

    def tell(
        self, kind: EventKind, *, reason: str | None = None, error: dict[str, Any] | None = None,
        worker: Worker | None = None, due_at: int | None = None, started_at: int | None = None,
        wait_ms: int | None = None, run_ms: int | None = None,
        data: dict[str, Any] | None = None, new_spec: Spec | None = None,
    ) -> Story:
        """One more event; the facts are the optional fields of `Event`."""
        job = self.job
        if job is None:
            raise InvalidTransition(None, kind)
        after = _MOVES[kind].get(job.state)
        if after is None:
            raise InvalidTransition(job, kind)
        spec = job.spec
        begins = kind is _DISPATCHED
        gives_back = kind in GIVES_BACK
        redriven = kind is _REDRIVEN
        event = Event(
            kind, spec.user_id, spec.job_id, spec.type, spec.queue, spec.priority,
            spec.requested_at, job.run + redriven, job.sequence + 1,
            0 if redriven else job.attempt + begins - gives_back, job.epoch + begins,
            self._now, job.state, after, cause=self._cause, reason=reason, error=error,
            worker=worker, due_at=due_at, started_at=started_at, wait_ms=wait_ms, run_ms=run_ms,
            data=data, spec=new_spec, labels=spec.labels,
        )
        self.job = evolve(job, event)
        self.events.append(event)
        return self

    def end(
        self, kind: EventKind, reason: str | None = None, *,
        error: dict[str, Any] | None = None, worker: Worker | None = None,
        run_ms: int | None = None, data: dict[str, Any] | None = None,
    ) -> Accepted:
        """The terminal event, with the waiting and running time of the last attempt."""
        job = self.job
        wait_ms = None
        if job is None or job.started_at is None:
            run_ms = None
        else:
            wait_ms = max(0, job.started_at - job.queued_at)
        if job is not None and worker is None:
            worker = job.worker
        self.tell(
            kind, reason=reason, error=error, worker=worker, wait_ms=wait_ms, run_ms=run_ms,
            data=data,
        )
        return self.done()

    def cancel(self, command: Cancel | KeptCancel) -> Accepted:
        """The end that a command asked for, now or before the request came: it is the cause."""
        self._cause = command.cause
        data = {"actor": command.actor, "reason": command.reason}
        return self.end(_E.CANCELLED, Reason.CANCELLED_BY_COMMAND, data=data)

    def done(self) -> Accepted:
        if self.job is None:
            raise InvalidTransition(None, _E.REQUESTED)
        return Accepted(self.events, self.job)


def decide(job: Job | None, command: CoreCommand, now: int, situation: Situation) -> Decision:
    """The events that `command` causes for `job` at `now` (epoch ms), or why it causes none."""
    match command:
        case Report():
            return _report(job, command, now, situation)
        case Submit():
            return _submit(job, command, now, situation)
        case Dispatch():
            return Story(job, now, None).tell(_DISPATCHED).done()
        case Defer():
            put_off = Story(job, now, None)
            return put_off.tell(_E.DEFERRED, reason=command.reason, due_at=command.due_at).done()
        case Refuse():
            return _refuse(job, command, now, situation)
        case Resolve():
            return _resolve(job, command, now, situation)
        case Expire():
            return Story(job, now, None).end(_E.EXPIRED, Reason.EXPIRED_BEFORE_START)
        case Rescue():
            return _give_back(
                job, _E.RESCUED, command.reason, now, None, situation, detail=command.detail
            )
        case Cancel():
            return _cancel(job, command, now, situation)
        case Forget():
            return Rejected(command.reason, _E.COMMAND_REFUSED)
        case Redrive():
            return _redrive(job, command, now, situation)
        case _:
            assert_never(command)


def _submit(job: Job | None, command: Submit, now: int, situation: Situation) -> Decision:
    requested_at = now
    if job is not None:  # duplicates first: a repeat must not touch a limit
        if not job.is_refused:
            return repeat_of(job.spec.fingerprint, command.decoded.fingerprint)
        requested_at = job.spec.requested_at
    policy = situation.policy_for_new(command.decoded.request.type)
    spec = admission.spec_of(command, requested_at, situation.accepted, policy)
    story = Story(job, now, command.cause)
    kept = situation.kept_cancel(spec.key)
    skip = admission.reason_to_skip(spec, policy, now, situation)
    holds_limit = kept is None and skip is None and policy is not None and policy.has_skip_limit
    story.begin(spec, admission.requested_data(spec, holds_limit=holds_limit))
    if kept is not None:
        return story.cancel(kept)
    if skip is not None:
        return story.end(_E.SKIPPED, skip)
    if admission.is_expired(spec, now):
        return story.end(_E.EXPIRED, Reason.EXPIRED_BEFORE_START)
    if policy is None:
        story.tell(_E.DEFERRED, reason=Reason.UNKNOWN_TYPE, due_at=now + UNKNOWN_TYPE_WAIT_MS)
    elif spec.run_at is not None and spec.run_at > now:
        story.tell(_E.SCHEDULED, reason=Reason.RUN_AT, due_at=spec.run_at)
    return story.done()


def _refuse(job: Job | None, command: Refuse, now: int, situation: Situation) -> Decision:
    if job is not None:
        return Rejected(Reason.OTHER_BODY, _E.CONFLICT_IGNORED)
    spec = admission.refused_spec(command, now, situation.accepted)
    story = Story(None, now, command.cause)
    story.begin(spec, None)
    kept = situation.kept_cancel(spec.key)
    if kept is not None:
        return story.cancel(kept)
    error = admission.refusal_error(command.refusal)
    return story.end(_E.FAILED, Reason.NOT_RETRYABLE, error=error)


def _resolve(job: Job | None, command: Resolve, now: int, situation: Situation) -> Decision:
    if job is None:
        raise InvalidTransition(None, _E.SCHEDULED)
    story = Story(job, now, None)
    if admission.is_too_late(job, now):
        return story.end(_E.EXPIRED, Reason.EXPIRED_BEFORE_START)
    policy = command.policy
    if policy is None:
        error = admission.unknown_type_error(job.spec)
        return story.end(_E.FAILED, Reason.NOT_RETRYABLE, error=error)
    spec = admission.resolved(job.spec, policy)
    skip = admission.reason_to_skip(spec, policy, now, situation)
    if skip is not None:
        return story.end(_E.SKIPPED, skip)
    holds_limit = policy.has_skip_limit
    due_at = max(now, spec.run_at or now)
    data = admission.resolved_data(spec, holds_limit=holds_limit)
    reason = Reason.RUN_AT if due_at > now else None
    story.tell(_E.SCHEDULED, reason=reason, due_at=due_at, data=data, new_spec=spec)
    return story.done()


def _report(job: Job | None, command: Report, now: int, situation: Situation) -> Decision:
    outcome = command.outcome
    kind = outcome["kind"]
    # A record that comes again, or late, tells nothing of jobs that have ended or moved on since.
    is_again = kind == "returned" and outcome.get("reason") == Reason.REDELIVERED
    is_unbegun = is_again or (kind == "returned" and outcome.get("reason") == Reason.WORKER_STALLED)
    audit = None if is_unbegun else _E.OUTCOME_IGNORED
    if job is None:
        return Rejected(Reason.UNKNOWN_JOB, audit)
    if job.state in TERMINAL_STATES:
        return Rejected(Reason.ALREADY_ENDED, audit)
    if job.epoch != outcome["epoch"] or job.state not in IN_FLIGHT_STATES:
        return Rejected(Reason.STALE_EPOCH, audit)
    story = Story(job, now, command.cause)
    if kind == "succeeded":
        return _attempt_succeeded(story, job, command, now)
    if kind == "failed":
        return _attempt_failed(story, job, command, now, situation)
    if kind == "started":
        if job.state is _RUNNING:
            return Rejected(Reason.SAME_BODY, None)
        begun_at, wait_ms, _ = attempts.times(job, outcome, now)
        story.tell(_E.ATTEMPT_STARTED, worker=command.worker, started_at=begun_at, wait_ms=wait_ms)
        return story.done()
    if kind == "progressed":
        if job.state is not _RUNNING:
            return Rejected(Reason.STALE_EPOCH, None)
        story.tell(_E.PROGRESSED, worker=command.worker, data=attempts.progress_of(outcome))
        return story.done()
    if kind == "returned":
        return _returned(job, command, now, situation, is_again=is_again)
    reason = attempts.reason_of(outcome) or "skipped by its handler"
    return story.end(_E.SKIPPED, reason, worker=command.worker)


def _attempt_succeeded(story: Story, job: Job, command: Report, now: int) -> Decision:
    worker = command.worker
    started_at, wait_ms, run_ms = attempts.times(job, command.outcome, now)
    result_json = attempts.result_json(command.outcome.get("result"))
    if isinstance(result_json, dict):
        story.tell(
            _E.ATTEMPT_FAILED, worker=worker, started_at=started_at, wait_ms=wait_ms,
            run_ms=run_ms, error=result_json,
        )
        return story.end(_E.FAILED, Reason.NOT_RETRYABLE, run_ms=run_ms, error=result_json)
    story.tell(
        _ATTEMPT_SUCCEEDED, worker=worker, started_at=started_at, wait_ms=wait_ms, run_ms=run_ms
    )
    story.tell(
        _SUCCEEDED, worker=worker, wait_ms=wait_ms, run_ms=run_ms,
        data={"result": _Fragment(result_json)},
    )
    return story.done()


def _attempt_failed(
    story: Story, job: Job, command: Report, now: int, situation: Situation
) -> Decision:
    error = attempts.error_of(command.outcome)
    started_at, wait_ms, run_ms = attempts.times(job, command.outcome, now)
    story.tell(
        _E.ATTEMPT_FAILED, worker=command.worker, started_at=started_at, wait_ms=wait_ms,
        run_ms=run_ms, error=error, data=attempts.trace_of(command.outcome),
    )
    if job.is_cancel_requested:
        return story.end(_E.CANCELLED, Reason.CANCELLED_BY_COMMAND, run_ms=run_ms)
    if not error["retryable"]:
        return story.end(_E.FAILED, Reason.NOT_RETRYABLE, run_ms=run_ms, error=error)
    if job.attempt >= job.spec.max_attempts:
        return story.end(_E.FAILED, Reason.ATTEMPTS_EXHAUSTED, run_ms=run_ms, error=error)
    delay_ms = attempts.delay_ms(job, command.outcome, situation.policy(job.spec.type))
    story.tell(_E.RETRY_SCHEDULED, due_at=now + delay_ms, error=error)
    return story.done()


def _returned(
    job: Job, command: Report, now: int, situation: Situation, *, is_again: bool
) -> Decision:
    reason = attempts.reason_of(command.outcome) or Reason.NO_FREE_SLOT
    detail = attempts.detail_of(command.outcome)
    kind = _E.RETURNED
    if is_again and job.state is _RUNNING:
        return Rejected(Reason.SAME_BODY, None)  # its worker has it, or its silence will tell
    if reason == Reason.WORKER_STALLED and job.state is _RUNNING and job.worker != command.worker:
        return Rejected(Reason.SAME_BODY, None)  # it had the record once; another worker runs it
    if is_again and not job.rescues:
        # Its worker was lost, and perhaps this job ended it. From now on each start is told
        # before the handler is called: when it comes again untold, it was not begun.
        kind, detail = _E.RESCUED, detail or attempts.ENDED_UNTOLD
    return _give_back(job, kind, reason, now, command.cause, situation, detail=detail)


def _give_back(
    job: Job | None, kind: EventKind, reason: str, now: int, cause: Cause | None,
    situation: Situation, *, detail: str | None,
) -> Decision:
    story = Story(job, now, cause)
    returns = job.returns + 1 if job is not None and kind is _E.RETURNED else 0
    story.tell(kind, reason=reason, data=attempts.returned_data(returns, detail))
    left = story.job
    if left is not None and left.is_cancel_requested:
        return story.end(_E.CANCELLED, Reason.CANCELLED_BY_COMMAND)
    if left is not None and left.rescues > RESCUES_MAX:
        error = attempts.worker_lost_error(left.rescues, detail)
        return story.end(_E.FAILED, Reason.WORKER_LOST, error=error)
    if reason == Reason.TYPE_NOT_RUN:  # sent at once, it might meet the same worker
        due_at = now + attempts.return_delay_ms(returns)
        story.tell(_E.DEFERRED, reason=Reason.HANDED_BACK, due_at=due_at)
    if left is not None and left.interruptions > situation.interruptions_max:
        error = attempts.interrupted_error(left.interruptions)
        return story.end(_E.FAILED, Reason.INTERRUPTED, error=error)
    return story.done()


def _cancel(job: Job | None, command: Cancel, now: int, situation: Situation) -> Decision:
    if job is None:
        if situation.has_ended(command.key):
            return Rejected(Reason.ALREADY_ENDED, _E.COMMAND_REFUSED)
        return Kept()  # its request may be under way: a submit or a refusal finds the cancel
    if job.state in TERMINAL_STATES:
        return Rejected(Reason.ALREADY_ENDED, _E.COMMAND_REFUSED)
    story = Story(job, now, command.cause)
    if job.state in IN_FLIGHT_STATES:
        if job.is_cancel_requested:
            return Rejected(Reason.SAME_BODY, _E.COMMAND_REFUSED)
        data = {"actor": command.actor, "reason": command.reason}
        return story.tell(_E.CANCEL_REQUESTED, data=data).done()
    return story.cancel(command)


def _redrive(job: Job | None, command: Redrive, now: int, situation: Situation) -> Decision:
    if job is None:
        return Rejected(Reason.UNKNOWN_JOB, _E.COMMAND_REFUSED)
    if not job.is_dead_letter:
        is_over = job.state in TERMINAL_STATES
        reason = Reason.ALREADY_ENDED if is_over else Reason.NOT_ENDED
        return Rejected(reason, _E.COMMAND_REFUSED)
    if admission.is_too_late(job, now):  # it would only lose its dead letter
        return Rejected(Reason.EXPIRED_BEFORE_START, _E.COMMAND_REFUSED)
    key = job.spec.unique_key
    if key is not None and situation.unique_holder(job.spec.user_id, key) is not None:
        return Rejected(Reason.DUPLICATE, _E.COMMAND_REFUSED)
    data = {"actor": command.actor, "reason": command.reason}
    story = Story(job, now, command.cause)
    story.tell(_E.REDRIVEN, data=data, reason=Reason.OPERATOR)
    if job.epoch == 0:  # it failed because nobody knew its type
        story.tell(_E.DEFERRED, reason=Reason.UNKNOWN_TYPE, due_at=now + UNKNOWN_TYPE_WAIT_MS)
    return story.done()
