"""The closed vocabularies: states, events, reasons, error codes, priorities.

Owns the spelling of each word, once. Refuses to know which event may follow which state: that is
`tidemill.streams.lifecycle.TRANSITIONS`.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Final, TypeVar

E = TypeVar("E", bound=Enum)


def direct(words: type[E]) -> type[E]:
    """Lets `State.RUNNING` be a plain attribute, as it is from Python 3.12 on.

    Python 3.11 goes through a descriptor written in Python at each access, five times as slow, and
    deciding on a job makes some forty of them.
    """
    for name, member in words.__members__.items():
        type.__setattr__(words, name, member)
    return words


@direct
class State(StrEnum):
    """Where a job is. The last five are terminal."""

    # Enum's own hash is Python code and each transition is looked up by it.
    __hash__ = str.__hash__

    SCHEDULED = "scheduled"  # waits for an instant: `run_at`, a limit, a definition
    PENDING = "pending"  # may be dispatched as soon as a slot is free
    DISPATCHED = "dispatched"  # written to `jobs.ready.<queue>`
    RUNNING = "running"  # a worker said that it started
    RETRYING = "retrying"  # an attempt failed; waits for its backoff
    # Its handler waits for an instant, a signal or members, and holds no slot.
    AWAITING = "awaiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    EXPIRED = "expired"


TERMINAL_STATES: Final = frozenset(
    {State.SUCCEEDED, State.FAILED, State.CANCELLED, State.SKIPPED, State.EXPIRED}
)
WAITING_STATES: Final = frozenset({State.SCHEDULED, State.PENDING, State.RETRYING})
"""They wait for an attempt. An awaiting job does not: what it waits for is its own business."""
IN_FLIGHT_STATES: Final = frozenset({State.DISPATCHED, State.RUNNING})


@direct
class EventKind(StrEnum):
    """What happened to a job, past tense. All but the audit kinds carry a `sequence`."""

    __hash__ = str.__hash__

    REQUESTED = "requested"
    SCHEDULED = "scheduled"
    DEFERRED = "deferred"
    DISPATCHED = "dispatched"
    ATTEMPT_STARTED = "attempt_started"
    PROGRESSED = "progressed"
    ATTEMPT_SUCCEEDED = "attempt_succeeded"
    ATTEMPT_FAILED = "attempt_failed"
    RETRY_SCHEDULED = "retry_scheduled"
    RETURNED = "returned"
    RESCUED = "rescued"
    STEP_COMPLETED = "step_completed"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    CANCEL_REQUESTED = "cancel_requested"
    REDRIVEN = "redriven"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    EXPIRED = "expired"
    # Audit: something arrived and changed nothing. `sequence` is null.
    DUPLICATE_IGNORED = "duplicate_ignored"
    CONFLICT_IGNORED = "conflict_ignored"
    OUTCOME_IGNORED = "outcome_ignored"
    COMMAND_REFUSED = "command_refused"
    CANCEL_KEPT = "cancel_kept"  # of a job that nobody has asked for yet: the state is null
    SIGNAL_KEPT = "signal_kept"  # for a job whose handler does not wait for it yet


AUDIT_KINDS: Final = frozenset(
    {
        EventKind.DUPLICATE_IGNORED,
        EventKind.CONFLICT_IGNORED,
        EventKind.OUTCOME_IGNORED,
        EventKind.COMMAND_REFUSED,
        EventKind.CANCEL_KEPT,
        EventKind.SIGNAL_KEPT,
    }
)
TERMINAL_KINDS: Final = frozenset(
    {
        EventKind.SUCCEEDED,
        EventKind.FAILED,
        EventKind.CANCELLED,
        EventKind.SKIPPED,
        EventKind.EXPIRED,
    }
)


@direct
class Reason(StrEnum):
    """Why a job was skipped, deferred, rescued or a command refused. Closed, so that SQL can group.

    A handler's own `Skip(reason=...)` is free text and is kept as it is in the same column.
    """

    DUPLICATE = "duplicate"  # another live job has the same unique_key
    RATE_LIMITED = "rate_limited"
    CONCURRENCY_LIMITED = "concurrency_limited"  # as many of its user and type run as may
    OVERLAP = "overlap"  # an earlier tick of its schedule has not ended
    MISSED = "missed"  # a tick of a time in which nothing was due to run
    JOINED = "joined"  # it shares the run of another job, and ends when that ends
    COLLAPSED = "collapsed"  # it shared the run of another job, which has ended
    RUN_AT = "run_at"
    UNKNOWN_TYPE = "unknown_type"  # no worker has told of this type yet
    TYPE_NOT_RUN = "type_not_run"  # of the queue's living workers none runs the type
    QUEUE_NOT_SERVED = "queue_not_served"  # the queue has no living worker
    HANDED_BACK = "handed_back"  # by a worker that does not run it; it waits before it goes again
    SAME_BODY = "same_body"  # a repeat of the same request
    OTHER_BODY = "other_body"  # the same job_id with another request
    STALE_EPOCH = "stale_epoch"  # an outcome of an attempt that was superseded
    ALREADY_ENDED = "already_ended"
    UNKNOWN_JOB = "unknown_job"
    TOO_MANY_CANCELS = "too_many_cancels"  # of jobs that nobody has asked for yet
    NOT_ENDED = "not_ended"
    WORKER_LOST = "worker_lost"
    WORKER_RESTARTED = "worker_restarted"
    DISPATCH_LOST = "dispatch_lost"
    REDELIVERED = "redelivered"  # its ready record had been delivered before, to a lost worker
    ON_PROBATION = "on_probation"  # rescued jobs of one worker run a few at a time
    INTERRUPTED = "interrupted"  # it ran longer than its worker may take to stop
    NO_FREE_SLOT = "no_free_slot"
    MEMORY_INCOMPLETE = "memory_incomplete"  # not all of what it remembers had come to its worker
    WORKER_STALLED = "worker_stalled"  # its worker stood still before it began
    REBALANCED = "rebalanced"  # the ready partition went to another worker before it began
    WORKER_STOPPING = "worker_stopping"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    NOT_RETRYABLE = "not_retryable"
    CANCELLED_BY_COMMAND = "cancelled_by_command"
    EXPIRED_BEFORE_START = "expired_before_start"
    OPERATOR = "operator"
    # What an awaiting job waits for, and why it goes on.
    SLEEPING = "sleeping"  # an instant
    INSTANT_CAME = "instant_came"
    MEMBERS_AWAITED = "members_awaited"  # jobs that its handler asked for together
    MEMBERS_ENDED = "members_ended"
    MISSING_PARTS = "missing_parts"  # of the list of members that it waits for
    NOT_RELEASED = "not_released"  # a member that its gather had no use for any more
    NO_LONGER_AWAITED = "no_longer_awaited"  # a member that is somebody else's job too
    SIGNAL_AWAITED = "signal_awaited"
    SIGNAL_CAME = "signal_came"
    TIMED_OUT = "timed_out"  # no signal came in time
    # Why a signal is refused.
    ALREADY_SIGNALLED = "already_signalled"  # the first signal of a name counts
    NAME_TAKEN = "name_taken"  # by a step or a sleep of the job
    NOT_AWAITED = "not_awaited"  # kept for a day, and no handler has waited for it
    TOO_MANY_SIGNALS = "too_many_signals"  # that nobody waits for yet
    TOO_LARGE = "too_large"  # a step's result, or all that its job remembers


@direct
class ErrorCode(StrEnum):
    """Codes that the engine itself gives. Handlers may add their own (`NonRetryable(code=)`)."""

    UNDECODABLE = "UNDECODABLE"  # not UTF-8 JSON
    EMPTY_RECORD = "EMPTY_RECORD"  # a tombstone: no value
    NOT_AN_OBJECT = "NOT_AN_OBJECT"
    TOO_DEEP = "TOO_DEEP"
    INTEGER_TOO_LARGE = "INTEGER_TOO_LARGE"
    REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE"
    UNKNOWN_FIELD = "UNKNOWN_FIELD"
    MISSING_FIELD = "MISSING_FIELD"
    INVALID_FIELD = "INVALID_FIELD"
    INVALID_CLOUDEVENT = "INVALID_CLOUDEVENT"
    UNKNOWN_VERSION = "UNKNOWN_VERSION"
    UNKNOWN_TYPE = "UNKNOWN_TYPE"
    INVALID_PAYLOAD = "INVALID_PAYLOAD"
    HANDLER_ERROR = "HANDLER_ERROR"
    TIMEOUT = "TIMEOUT"
    RESULT_TOO_LARGE = "RESULT_TOO_LARGE"
    RESULT_NOT_JSON = "RESULT_NOT_JSON"
    WORKER_LOST = "WORKER_LOST"  # rescued too often
    INTERRUPTED = "INTERRUPTED"  # its workers were stopped too often while it ran
    PROCESS_DIED = "PROCESS_DIED"  # a child process of a worker died (crash, out of memory)
    CANCELLED = "CANCELLED"
    STEP_TOO_LARGE = "STEP_TOO_LARGE"  # one step's result, or all that a job remembers
    NAME_USED_TWICE = "NAME_USED_TWICE"  # of a step or a wait, in one run of the handler
    SUSPENDED_SIDE_BY_SIDE = "SUSPENDED_SIDE_BY_SIDE"  # two waits at once
    SUSPENSION_SWALLOWED = "SUSPENSION_SWALLOWED"  # the handler caught what ends its attempt
    TOO_MANY_SUSPENSIONS = "TOO_MANY_SUSPENSIONS"
    MEMBERS_FAILED = "MEMBERS_FAILED"  # more of a gather than it tolerates
    SIGNAL_TIMEOUT = "SIGNAL_TIMEOUT"  # no signal came in time, and the handler let that pass
    INVALID_SIGNAL = "INVALID_SIGNAL"  # its value is not what the handler reads it as
    UNKNOWN_JOB = "UNKNOWN_JOB"  # a command about a job that this log does not know
    ANOTHER_BODY = "ANOTHER_BODY"  # a member's job_id is that of a job with another body
    TOO_MANY_WATCHERS = "TOO_MANY_WATCHERS"  # gathers that wait for one job
    BROKEN_FORWARD = "BROKEN_FORWARD"
    BROKEN_MESSAGE = "BROKEN_MESSAGE"  # between partitions
    RECORDS_LOST = "RECORDS_LOST"  # of an input, deleted from the log before they were read


@direct
class Priority(StrEnum):
    """Order between waiting jobs of one queue."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


PRIORITY_TEXT: Final = {priority: str(priority.value) for priority in Priority}
"""The plain text of each: reading `.value` costs more than the look-up."""
PRIORITY_ORDER: Final = (Priority.HIGH, Priority.MEDIUM, Priority.LOW)
