"""The life of a job: which event may follow which state, and what each event changes in a job.

Owns the law and the fold. Refuses to know who decides (`tidemill.streams.decisions`), partitions,
topics, timers and the order among waiting jobs.

How to read it: `TRANSITIONS` is the law for what happens to a job. `NOTES` is the law for what is
only noted: something arrived and changed nothing. No other event is ever written. `evolve` folds
one event into a job and is the only writer of `Job`. Every number that an event has (sequence, run,
attempt, epoch) is computed where the event is made, once; the fold reads it.
"""

from __future__ import annotations

from typing import Final

from tidemill.schemas.event_writer import Event
from tidemill.schemas.words import TERMINAL_KINDS, TERMINAL_STATES, EventKind, Reason, State
from tidemill.streams.decision import InvalidTransition
from tidemill.streams.job import Job

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
    (_S.RUNNING, _E.STEP_COMPLETED): _S.RUNNING,
    # Its handler waits: no attempt is spent, and the same one goes on as soon as a slot is free.
    (_S.DISPATCHED, _E.SUSPENDED): _S.AWAITING,
    (_S.RUNNING, _E.SUSPENDED): _S.AWAITING,
    (_S.AWAITING, _E.PROGRESSED): _S.AWAITING,
    (_S.AWAITING, _E.RESUMED): _S.PENDING,
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
    (_S.RETRYING, _E.SKIPPED): _S.SKIPPED,
    (_S.RETRYING, _E.FAILED): _S.FAILED,
    (_S.RETRYING, _E.CANCELLED): _S.CANCELLED,
    (_S.RETRYING, _E.EXPIRED): _S.EXPIRED,
    (_S.AWAITING, _E.CANCELLED): _S.CANCELLED,
    (_S.AWAITING, _E.FAILED): _S.FAILED,
    # A dead letter may run again, and a refused request does not take its id: a mended one runs.
    (_S.FAILED, _E.REDRIVEN): _S.PENDING,
    (_S.FAILED, _E.REQUESTED): _S.PENDING,
}

_ALL: Final[tuple[State | None, ...]] = tuple(State)
NOTES: Final[dict[EventKind, tuple[State | None, ...]]] = {
    # A request for a job that is known, alive or ended.
    _E.DUPLICATE_IGNORED: _ALL,
    _E.CONFLICT_IGNORED: _ALL,
    # Of an attempt that is over. Nothing is noted of a job that nobody knows.
    _E.OUTCOME_IGNORED: _ALL,
    # None: a kept cancel is given up, because nobody has asked for its job in time.
    _E.COMMAND_REFUSED: (None, *_ALL),
    # The cancel of a job that nobody knows yet waits for its request.
    _E.CANCEL_KEPT: (None,),
    # A signal waits for its job's handler, or for the request of its job.
    _E.SIGNAL_KEPT: (None, *(state for state in State if state not in TERMINAL_STATES)),
}
"""Events that change no job, each with the states in which it may be told; None: no such job."""

# The same by kind: two quick look-ups instead of one by a new pair.
_MOVES: Final[dict[EventKind, dict[State | None, State]]] = {
    kind: {before: after for (before, of), after in TRANSITIONS.items() if of is kind}
    for kind in EventKind
}

# By names of this module: compiled code reads those without a look-up.
_REQUESTED: Final = _E.REQUESTED
_DISPATCHED: Final = _E.DISPATCHED
_RETURNED: Final = _E.RETURNED
_TELLS_OF_ATTEMPT: Final = frozenset(
    {_E.ATTEMPT_STARTED, _E.ATTEMPT_SUCCEEDED, _E.ATTEMPT_FAILED}
)
_PUTS_OFF: Final = frozenset({_E.SCHEDULED, _E.DEFERRED, _E.RETRY_SCHEDULED})
_SUSPENDED: Final = _E.SUSPENDED
GIVES_BACK: Final = frozenset({_E.RETURNED, _E.RESCUED, _E.SUSPENDED})
"""No attempt is spent."""


def state_after(state: State | None, kind: EventKind) -> State | None:
    """The state that the event leads to; None when the law does not allow it."""
    return _MOVES[kind].get(state)


def evolve(job: Job | None, event: Event) -> Job:
    """The job after `event`. Pure: the argument stays as it was.

    Raises InvalidTransition where TRANSITIONS has no entry: that is a bug, never an input's fault.
    """
    kind = event.kind
    state = _MOVES[kind].get(job.state if job is not None else None)
    sequence = event.sequence
    if state is None or state is not event.state_after or sequence is None:
        raise InvalidTransition(job, kind)
    if kind is _REQUESTED or job is None:
        holds_limit = bool(event.data and event.data.get("holds_limit"))
        if job is None:
            return Job.first(event.spec, state, holds_limit=holds_limit)
        return job.begun_again(
            event.spec, state, sequence, event.run, event.occurred_at, holds_limit=holds_limit
        )
    new = job.moved_to(state, sequence, event.run, event.attempt, event.epoch)
    if kind is _DISPATCHED:
        _fold_dispatched(new, event)
    elif kind in TERMINAL_KINDS:
        new.finished_at = event.occurred_at
        new.reason = event.reason
        new.due_at = None
        new.waits_for = None
        new.holds_limit = False
        if event.error is not None:
            new.error = event.error
    else:
        _fold_other(new, kind, event)
    return new


def _fold_dispatched(new: Job, event: Event) -> None:
    """An attempt begins."""
    new.dispatched_at = event.occurred_at
    new.due_at = None
    new.reason = None
    new.waits_for = None
    new.worker = None
    new.holds_limit = False


def _fold_other(new: Job, kind: EventKind, event: Event) -> None:
    """Any other event that does not end the run."""
    if kind in _TELLS_OF_ATTEMPT:
        new.started_at = event.started_at
        new.worker = event.worker
        if event.error is not None:
            new.error = event.error
    elif kind in _PUTS_OFF:
        new.due_at = event.due_at
        new.reason = event.reason
        new.waits_for = event.waits_for
        if event.spec is not None:
            new.spec = event.spec
            new.holds_limit = bool(event.data and event.data.get("holds_limit"))
    elif kind is _SUSPENDED:
        new.worker = None
        new.due_at = event.due_at
        new.reason = event.reason
        new.waits_for = event.waits_for
        new.suspensions += 1
        new.rescues = new.returns = new.interruptions = 0  # what it has come to is safe
    elif kind is EventKind.RESUMED:
        new.due_at = new.reason = new.waits_for = None
        new.queued_at = event.occurred_at
    elif kind in GIVES_BACK:
        new.worker = None
        if kind is _RETURNED:
            new.returns = event.data["returns"] if event.data else new.returns + 1
        else:
            new.rescues += 1
        new.interruptions += event.reason == Reason.INTERRUPTED
    elif kind is EventKind.CANCEL_REQUESTED:
        new.is_cancel_requested = True
    elif kind is EventKind.REDRIVEN:
        new.rescues = new.returns = new.interruptions = new.suspensions = 0
        new.queued_at = event.occurred_at
        new.finished_at = new.started_at = new.error = new.reason = None
        new.is_cancel_requested = False
