"""Who decides about a job: a command and a job lead to events, or to a rejection with a reason.

Owns `decide` and the making of events. Refuses to know which event may follow which state
(`tidemill.streams.lifecycle`), and what a decision leads to outside its job.
"""

from __future__ import annotations

from typing import Any, Final, assert_never

import orjson

from tidemill.schemas.event_writer import Event
from tidemill.schemas.words import IN_FLIGHT_STATES, TERMINAL_STATES, EventKind, Reason, State
from tidemill.streams import admission, attempts, suspensions
from tidemill.streams.commands import (
    Cancel,
    Cause,
    CoreCommand,
    Dispatch,
    Forget,
    Gathered,
    Obey,
    Redrive,
    Refuse,
    Report,
    Rescue,
    Resolve,
    Resume,
    Signal,
    Submit,
    Tell,
)
from tidemill.streams.decision import (
    Accepted,
    Decision,
    InvalidTransition,
    Kept,
    Rejected,
    repeat_of,
)
from tidemill.streams.gathers import deciding
from tidemill.streams.job import HANDED_BACK, Job, JobKey, Spec, WaitKey, Worker
from tidemill.streams.lifecycle import GIVES_BACK, evolve, state_after
from tidemill.streams.policies.base import Verdict, ask_door, ask_start
from tidemill.streams.policies.unknown_type import await_type, nobody_runs
from tidemill.streams.store.kept_cancels import KeptCancel
from tidemill.streams.turn import Turn

_E: Final = EventKind
# By names of this module: compiled code reads those without a look-up.
_PENDING: Final = State.PENDING
_RUNNING: Final = State.RUNNING
_REQUESTED: Final = _E.REQUESTED
_DISPATCHED: Final = _E.DISPATCHED
_ATTEMPT_SUCCEEDED: Final = _E.ATTEMPT_SUCCEEDED
_SUCCEEDED: Final = _E.SUCCEEDED
_REDRIVEN: Final = _E.REDRIVEN
_SKIPPED: Final = _E.SKIPPED
_Fragment: Final = orjson.Fragment


class EventBuilder:
    """Collects the events of one decision, each from the job as the one before left it."""

    __slots__ = ("_cause", "_now", "events", "job")

    def __init__(self, job: Job | None, now: int, cause: Cause | None) -> None:
        self.job = job
        self.events: list[Event] = []
        self._now = now
        self._cause = cause

    def is_caused_by(self, cause: Cause) -> None:
        """What follows is the answer to an earlier input."""
        self._cause = cause

    def begin(self, spec: Spec, data: dict[str, Any] | None) -> None:
        """The first event of a job, or of its next run after a request that was refused."""
        job = self.job
        event = Event(
            _REQUESTED, spec.user_id, spec.job_id, spec.type, spec.queue, spec.priority,
            spec.requested_at, 1 if job is None else job.run + 1,
            1 if job is None else job.sequence + 1, 0, 0 if job is None else job.epoch, self._now,
            None if job is None else job.state, _PENDING,
            cause=self._cause, data=data, spec=spec, labels=spec.labels,
        )
        self.job = evolve(job, event)
        self.events.append(event)

    def tell(
        self, kind: EventKind, *, reason: str | None = None, error: dict[str, Any] | None = None,
        worker: Worker | None = None, due_at: int | None = None, started_at: int | None = None,
        wait_ms: int | None = None, run_ms: int | None = None,
        data: dict[str, Any] | None = None, new_spec: Spec | None = None,
        waits_for: WaitKey | None = None,
    ) -> EventBuilder:
        """One more event; the facts are the optional fields of `Event`."""
        job = self.job
        if job is None:
            raise InvalidTransition(None, kind)
        after = state_after(job.state, kind)
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
            data=data, spec=new_spec, labels=spec.labels, waits_for=waits_for,
        )
        self.job = evolve(job, event)
        self.events.append(event)
        return self

    def obey(self, verdict: Verdict) -> Accepted:
        """What a policy said that is not "go"."""
        kind = verdict.kind
        if kind is None:
            raise InvalidTransition(self.job, _E.DEFERRED)
        if kind is _E.DEFERRED:
            return self.tell(
                kind, reason=verdict.reason, due_at=verdict.until, waits_for=verdict.waits_for,
                data=verdict.data,
            ).done()
        return self.end(kind, verdict.reason, error=verdict.error, data=verdict.data)

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
            wait_ms = attempts.wait_ms(job, job.started_at)
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


def decide(job: Job | None, command: CoreCommand, turn: Turn) -> Decision:
    """The events that `command` causes for `job` at the turn's instant, or why it causes none."""
    match command:
        case Report():
            return _report(job, command, turn)
        case Submit():
            return _submit(job, command, turn)
        case Dispatch():
            return EventBuilder(job, turn.now_ms, None).tell(_DISPATCHED).done()
        case Obey():
            return EventBuilder(job, turn.now_ms, None).obey(command.verdict)
        case Refuse():
            return _refuse(job, command, turn)
        case Resolve():
            return _resolve(job, command, turn)
        case Rescue():
            return _give_back(
                job, _E.RESCUED, command.reason, None, turn, detail=command.detail
            )
        case Cancel():
            return _cancel(job, command, turn)
        case Resume():
            return suspensions.resume(EventBuilder(job, turn.now_ms, None))
        case Gathered():
            return deciding.gathered(EventBuilder(job, turn.now_ms, None), command, turn)
        case Tell():
            return deciding.progressed(EventBuilder(job, turn.now_ms, None), command)
        case Signal():
            story = EventBuilder(job, turn.now_ms, command.cause)
            return suspensions.signalled(story, command, turn)
        case Forget():
            return Rejected(command.reason, _E.COMMAND_REFUSED, command.data)
        case Redrive():
            return _redrive(job, command, turn)
        case _:
            assert_never(command)


def _submit(job: Job | None, command: Submit, turn: Turn) -> Decision:
    requested_at = now = turn.now_ms
    ended = command.ended
    if ended is not None:
        rejected = repeat_of(ended.fingerprint, command.decoded.fingerprint)
        return rejected.of(ended.state, command.decoded.request.type)
    if job is not None:  # duplicates first: a repeat must not touch a limit
        if not job.is_refused:
            return repeat_of(job.spec.fingerprint, command.decoded.fingerprint)
        requested_at = job.spec.requested_at
    job_type = turn.job_type_for_new(command.decoded.request.type)
    spec = admission.spec_of(command, requested_at, turn.accepted, job_type)
    story = EventBuilder(job, now, command.cause)
    kept = turn.kept_cancel(spec.key)
    policies = turn.policies.of_unknown if job_type is None else job_type.policies_for(spec)
    verdict = ask_door(policies, turn, spec, job_type, command.said)
    is_let_in = kept is None and verdict.kind is not _SKIPPED and not verdict.joins
    holds_limit = is_let_in and job_type is not None and job_type.has_skip_limit
    story.begin(spec, admission.requested_data(spec, holds_limit=holds_limit))
    if kept is not None:
        return story.cancel(kept)
    if verdict.kind is not None:
        return story.obey(verdict)
    if spec.run_at is not None and spec.run_at > now:
        story.tell(_E.SCHEDULED, reason=Reason.RUN_AT, due_at=spec.run_at)
    return story.done()


def _refuse(job: Job | None, command: Refuse, turn: Turn) -> Decision:
    if job is not None:
        return Rejected(Reason.OTHER_BODY, _E.CONFLICT_IGNORED)
    ended = turn.ended((command.user_id, command.job_id))
    if ended is not None:
        rejected = Rejected(Reason.OTHER_BODY, _E.CONFLICT_IGNORED)
        return rejected.of(ended.state, command.refusal.type or "")
    spec = admission.refused_spec(command, turn.now_ms, turn.accepted)
    story = EventBuilder(None, turn.now_ms, command.cause)
    story.begin(spec, None)
    kept = turn.kept_cancel(spec.key)
    if kept is not None:
        return story.cancel(kept)
    error = admission.refusal_error(command.refusal)
    return story.end(_E.FAILED, Reason.NOT_RETRYABLE, error=error)


def _resolve(job: Job | None, command: Resolve, turn: Turn) -> Decision:
    if job is None:
        raise InvalidTransition(None, _E.SCHEDULED)
    now = turn.now_ms
    story = EventBuilder(job, now, None)
    verdict = ask_start(turn.policies.of_unknown, turn, job)
    if verdict.is_end:
        return story.obey(verdict)
    job_type = command.job_type
    if job_type is None:
        return story.obey(nobody_runs(job.spec))
    spec = admission.resolved(job.spec, job_type)
    verdict = ask_door(job_type.policies_for(spec), turn, spec, job_type)
    if verdict.is_end:
        return story.obey(verdict)
    due_at = max(now, spec.run_at or now)
    holds_limit = job_type.has_skip_limit and not verdict.joins
    data = admission.resolved_data(spec, holds_limit=holds_limit)
    reason = Reason.RUN_AT if due_at > now else None
    story.tell(_E.SCHEDULED, reason=reason, due_at=due_at, data=data, new_spec=spec)
    return story.done() if verdict.kind is None else story.obey(verdict)


def _report(job: Job | None, command: Report, turn: Turn) -> Decision:
    outcome = command.outcome
    kind = outcome["kind"]
    # A record that comes again, or late, tells nothing of jobs that have ended or moved on since.
    is_again = kind == "returned" and outcome.get("reason") == Reason.REDELIVERED
    is_unbegun = is_again or (kind == "returned" and outcome.get("reason") == Reason.WORKER_STALLED)
    audit = None if is_unbegun else _E.OUTCOME_IGNORED
    if job is None:
        return _of_no_job((outcome["user_id"], outcome["job_id"]), audit, turn)
    if job.state in TERMINAL_STATES:
        return Rejected(Reason.ALREADY_ENDED, audit)
    if job.epoch != outcome["epoch"] or job.state not in IN_FLIGHT_STATES:
        return Rejected(Reason.STALE_EPOCH, audit)
    now = turn.now_ms
    story = EventBuilder(job, now, command.cause)
    if kind == "succeeded":
        return _attempt_succeeded(story, job, command, now)
    if kind == "failed":
        return _attempt_failed(story, job, command, turn)
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
        return _returned(job, command, turn, is_again=is_again)
    if kind == "stepped":
        return suspensions.stepped(story, job, command, turn)
    if kind == "suspended":
        return suspensions.suspended(story, job, command, turn)
    reason = attempts.reason_of(outcome) or "skipped by its handler"
    return story.end(_E.SKIPPED, reason, worker=command.worker)


def _of_no_job(key: JobKey, audit: EventKind | None, turn: Turn) -> Rejected:
    """What becomes of a word about a job that is not alive: one that ended has a story to add to,
    one that nobody knows has none."""
    ended = None if audit is None else turn.ended(key)
    if ended is None:
        return Rejected(Reason.UNKNOWN_JOB, None)
    return Rejected(Reason.ALREADY_ENDED, audit).of(ended.state)


def _attempt_succeeded(story: EventBuilder, job: Job, command: Report, now: int) -> Decision:
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
    story: EventBuilder, job: Job, command: Report, turn: Turn
) -> Decision:
    now = turn.now_ms
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
    story.tell(
        _E.RETRY_SCHEDULED, due_at=now + _delay_ms(job, command.outcome, turn), error=error
    )
    return story.done()


def _delay_ms(job: Job, outcome: dict[str, Any], turn: Turn) -> int:
    """How long to wait before the next attempt, as the first policy says that knows."""
    for policy in turn.policies.all:
        delay_ms = policy.may_retry(turn, job, outcome)
        if delay_ms is not None:
            return delay_ms
    return 0


def _returned(
    job: Job, command: Report, turn: Turn, *, is_again: bool
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
    return _give_back(job, kind, reason, command.cause, turn, detail=detail)


def _give_back(
    job: Job | None, kind: EventKind, reason: str, cause: Cause | None, turn: Turn,
    *, detail: str | None,
) -> Decision:
    story = EventBuilder(job, turn.now_ms, cause)
    returns = job.returns + 1 if job is not None and kind is _E.RETURNED else 0
    story.tell(kind, reason=reason, data=attempts.returned_data(returns, detail))
    left = story.job
    if left is not None:
        if left.is_cancel_requested:
            return story.end(_E.CANCELLED, Reason.CANCELLED_BY_COMMAND)
        for policy in turn.policies.all:
            verdict = policy.may_go_on(turn, left, detail)
            if verdict.kind is not None:
                return story.obey(verdict)
    # Sent at once, it might meet the same worker.
    if reason == Reason.TYPE_NOT_RUN or reason == Reason.MEMORY_INCOMPLETE:
        due_at = turn.now_ms + attempts.return_delay_ms(returns)
        story.tell(
            _E.DEFERRED, reason=Reason.HANDED_BACK, due_at=due_at, waits_for=HANDED_BACK
        )
    return story.done()


def _cancel(job: Job | None, command: Cancel, turn: Turn) -> Decision:
    if job is None:
        ended = turn.ended(command.key)
        if ended is not None:
            return Rejected(Reason.ALREADY_ENDED, _E.COMMAND_REFUSED).of(ended.state)
        return Kept()  # its request may be under way: a submit or a refusal finds the cancel
    if job.state in TERMINAL_STATES:
        return Rejected(Reason.ALREADY_ENDED, _E.COMMAND_REFUSED)
    story = EventBuilder(job, turn.now_ms, command.cause)
    if job.state in IN_FLIGHT_STATES:
        if job.is_cancel_requested:
            return Rejected(Reason.SAME_BODY, _E.COMMAND_REFUSED)
        data = {"actor": command.actor, "reason": command.reason}
        return story.tell(_E.CANCEL_REQUESTED, data=data).done()
    return story.cancel(command)


def _redrive(job: Job | None, command: Redrive, turn: Turn) -> Decision:
    if job is None:
        return _of_no_job(command.key, _E.COMMAND_REFUSED, turn)
    if not job.is_dead_letter:
        is_over = job.state in TERMINAL_STATES
        reason = Reason.ALREADY_ENDED if is_over else Reason.NOT_ENDED
        return Rejected(reason, _E.COMMAND_REFUSED)
    for policy in reversed(turn.policies.all):  # what has passed for good before what may change
        why_not = policy.may_redrive(turn, job)
        if why_not is not None:
            return Rejected(why_not, _E.COMMAND_REFUSED)
    data = {"actor": command.actor, "reason": command.reason}
    story = EventBuilder(job, turn.now_ms, command.cause)
    story.tell(_E.REDRIVEN, data=data, reason=Reason.OPERATOR)
    if job.epoch == 0:  # it failed because nobody knew its type
        return story.obey(await_type(job.spec.type, turn.now_ms))
    return story.done()
