"""What an event changes in a job, beside its state: the columns of `lifecycle.evolve`.

Owns which facts of an event a job keeps. Refuses to know which event is legal: only `evolve` calls
this, on a new object.
"""

from __future__ import annotations

from typing import Final

from schemas.event_writer import Event
from schemas.words import EventKind, Reason
from streams.job import Job

_TELLS_OF_ATTEMPT: Final = frozenset(
    {EventKind.ATTEMPT_STARTED, EventKind.ATTEMPT_SUCCEEDED, EventKind.ATTEMPT_FAILED}
)
_PUTS_OFF: Final = frozenset({EventKind.SCHEDULED, EventKind.DEFERRED, EventKind.RETRY_SCHEDULED})
GIVES_BACK: Final = frozenset({EventKind.RETURNED, EventKind.RESCUED})


def fold_dispatched(new: Job, event: Event) -> None:
    """An attempt begins."""
    new.attempt += 1
    new.epoch += 1
    new.dispatched_at = event.occurred_at
    new.due_at = None
    new.reason = None
    new.worker = None
    new.holds_limit = False


def fold_other(new: Job, kind: EventKind, event: Event) -> None:
    """Any other event that does not end the run."""
    if kind in _TELLS_OF_ATTEMPT:
        new.started_at = event.started_at
        new.worker = event.worker
        if event.error is not None:
            new.error = event.error
    elif kind in _PUTS_OFF:
        new.due_at = event.due_at
        new.reason = event.reason
        if event.spec is not None:
            new.spec = event.spec
            new.holds_limit = bool(event.data and event.data.get("holds_limit"))
    elif kind in GIVES_BACK:
        new.attempt -= 1
        new.worker = None
        new.rescues += kind is EventKind.RESCUED
        new.returns += kind is EventKind.RETURNED
        new.interruptions += event.reason == Reason.INTERRUPTED
    elif kind is EventKind.CANCEL_REQUESTED:
        new.is_cancel_requested = True
    elif kind is EventKind.REDRIVEN:
        new.run += 1
        new.attempt = new.rescues = new.returns = new.interruptions = 0
        new.queued_at = event.occurred_at
        new.finished_at = new.started_at = new.error = new.reason = None
        new.is_cancel_requested = False
