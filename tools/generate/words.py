"""What each word means to a reader of the documents, and the way out of each error.

Owns sentences. A test holds that no word of `tidemill.schemas.words` lacks one.
"""

from __future__ import annotations

from typing import Final

from tidemill.schemas.words import ErrorCode, EventKind, Reason, State

S, E, R, C = State, EventKind, Reason, ErrorCode

STATE_MEANINGS: Final[dict[State, str]] = {
    S.SCHEDULED: "Waits for an instant: `run_at`, a limit that delays, a definition of its type.",
    S.PENDING: "May be dispatched as soon as a worker has a free slot.",
    S.DISPATCHED: "Written to `jobs.ready.<queue>` for a worker.",
    S.RUNNING: "A worker has it.",
    S.RETRYING: "An attempt failed; the next one waits for its backoff.",
    S.AWAITING: (
        "Its handler sleeps until `due_at`, waits for a signal or for members, and holds no slot."
    ),
    S.SUCCEEDED: "Ended: the handler returned.",
    S.FAILED: "Ended: attempts exhausted, or an error that must not be retried. A dead letter.",
    S.CANCELLED: "Ended by a command.",
    S.SKIPPED: "Ended without being needed; `reason` says why.",
    S.EXPIRED: "Ended: not dispatched before `expires_at`.",
}

EVENT_MEANINGS: Final[dict[EventKind, str]] = {
    E.REQUESTED: "The request was accepted; `data` has payload and policy.",
    E.SCHEDULED: "It goes on at `due_at`.",
    E.DEFERRED: "It cannot go on yet; `reason` has the cause, `due_at` the instant.",
    E.DISPATCHED: "An attempt was handed to the workers of its queue.",
    E.ATTEMPT_STARTED: "A worker began. Only attempts longer than half a second tell this.",
    E.PROGRESSED: "The handler told its progress, in `data`.",
    E.ATTEMPT_SUCCEEDED: "The handler returned.",
    E.ATTEMPT_FAILED: "The handler raised, timed out, or its process died; `error` says how.",
    E.RETRY_SCHEDULED: "Another attempt begins at `due_at`.",
    E.RETURNED: "The worker could not begin or end it; `reason` says why. No attempt is spent.",
    E.RESCUED: "The worker was lost, `data.detail` says how; no attempt is spent.",
    E.STEP_COMPLETED: "A step of the handler is remembered; `data` has its name and result.",
    E.SUSPENDED: (
        "The handler waits: no slot is held, no attempt is spent. `data` says for what, `due_at` "
        "until when."
    ),
    E.RESUMED: "What it waited for is there, in `data`; it takes its old place in line.",
    E.CANCEL_REQUESTED: "Somebody wants it to stop; its worker is told.",
    E.REDRIVEN: "A person or a policy runs it again, as a new `run`.",
    E.SUCCEEDED: "The end: succeeded; `data` has the result.",
    E.FAILED: "The end: failed.",
    E.CANCELLED: "The end: cancelled.",
    E.SKIPPED: "The end: skipped.",
    E.EXPIRED: "The end: expired.",
    E.DUPLICATE_IGNORED: "The same request came again.",
    E.CONFLICT_IGNORED: "Another request came with the same `job_id`.",
    E.OUTCOME_IGNORED: "An outcome came too late, or of a superseded attempt.",
    E.COMMAND_REFUSED: "A command that the state does not allow; `reason` says why.",
    E.CANCEL_KEPT: (
        "A cancel of a job that nobody has asked for yet: it is kept until `due_at` and applied "
        "when the request comes. There is no state yet."
    ),
    E.SIGNAL_KEPT: (
        "A signal that the handler does not wait for yet: it is kept until `due_at`, for the job "
        "or for the request to come. `data` has its name, value and actor."
    ),
}

REASON_MEANINGS: Final[dict[Reason, str]] = {
    R.DUPLICATE: "Another live job has the same `unique_key`.",
    R.RATE_LIMITED: "A limit of the handler was reached.",
    R.CONCURRENCY_LIMITED: "As many jobs of its user and type run as may; it waits for one to end.",
    R.OVERLAP: "An earlier tick of its schedule has not ended.",
    R.MISSED: "A tick of a time in which nobody could ask for it; `catch_up` says what runs.",
    R.JOINED: "It shares the run of an earlier job for the same thing (`data.winner`), and ends "
    "when that ends.",
    R.COLLAPSED: "It shared the run of another job, which has ended: `collapsed_into` says which "
    "and how.",
    R.RUN_AT: "It waits for its `run_at`.",
    R.UNKNOWN_TYPE: "No worker has told of this type yet.",
    R.TYPE_NOT_RUN: "Workers of its queue live, and none of them runs its type.",
    R.QUEUE_NOT_SERVED: "Its queue has had no living worker for 30 s; it waits for one.",
    R.HANDED_BACK: "A worker gave it back that does not run its type, or had not got all that it "
    "remembers; it goes again a while later.",
    R.SAME_BODY: "A repeat of the same request.",
    R.OTHER_BODY: "The same `job_id` with another request.",
    R.STALE_EPOCH: "An outcome of an attempt that was superseded.",
    R.ALREADY_ENDED: "The job has ended.",
    R.UNKNOWN_JOB: "There is no such job, or it was forgotten after its retention.",
    R.TOO_MANY_CANCELS: "A kept cancel made room for newer ones before its request came.",
    R.NOT_ENDED: "Only a job that has failed can be redriven, and no request that was refused.",
    R.WORKER_LOST: "The worker was silent for ten seconds.",
    R.WORKER_RESTARTED: "The worker came back as a new process.",
    R.DISPATCH_LOST: "No worker took it up in time.",
    R.REDELIVERED: "Its ready record was delivered before, to a worker that was lost.",
    R.ON_PROBATION: "Rescued jobs run a few at a time, and others of its worker came first.",
    R.INTERRUPTED: "Its worker stopped while it ran, and it took longer than the grace.",
    R.NO_FREE_SLOT: "The worker could not start it within a second.",
    R.MEMORY_INCOMPLETE: "Not all of what it remembers had come to its worker, which read on where "
    "another one had stopped; all of it is sent again.",
    R.WORKER_STALLED: "Its worker stood still, held by a handler, before it began.",
    R.REBALANCED: "Workers came or went, and it was on its way to one that had not begun it.",
    R.WORKER_STOPPING: "The worker was asked to stop before the job began.",
    R.ATTEMPTS_EXHAUSTED: "The last attempt failed.",
    R.NOT_RETRYABLE: "The error must not be retried.",
    R.CANCELLED_BY_COMMAND: "A command cancelled it.",
    R.EXPIRED_BEFORE_START: "`expires_at` passed before it was dispatched. A redrive of a job that "
    "was never dispatched is refused with it, too.",
    R.OPERATOR: "A person redrove it.",
    R.SLEEPING: "Its handler sleeps until `due_at`.",
    R.TOO_LARGE: "A step's result is larger than 256 KiB, or all that its job remembers too large, "
    "with a signal's value too.",
    R.INSTANT_CAME: "The instant is there that it slept for.",
    R.MEMBERS_AWAITED: "Its handler waits for jobs that it asked for together; `data` says for how "
    "many.",
    R.MEMBERS_ENDED: "The jobs that it waited for have ended; `data` says how many have failed.",
    R.MISSING_PARTS: "Its list of members did not come whole, so the suspension does not count.",
    R.NOT_RELEASED: "A member that was never asked for: too many others had failed.",
    R.NO_LONGER_AWAITED: "A member that is somebody else's job too: it goes on by itself, and is "
    "waited for no more. Of an `outcome_ignored`: the parent has ended.",
    R.SIGNAL_AWAITED: "Its handler waits for the signal in `data`, until `due_at` or for ever.",
    R.SIGNAL_CAME: "The signal is there that it waited for; `data` has the value.",
    R.TIMED_OUT: "No signal came in time; a signal of that name is refused from then on.",
    R.ALREADY_SIGNALLED: "The job has, or will have, an earlier signal of that name.",
    R.NAME_TAKEN: "The job remembers a step or a sleep by that name.",
    R.NOT_AWAITED: "A signal was kept for a day, and the job's handler has not waited for it.",
    R.TOO_MANY_SIGNALS: "As many signals that nobody waits for are kept as may be.",
}

ERROR_FIXES: Final[dict[ErrorCode, tuple[str, str]]] = {
    C.UNDECODABLE: ("The record is not UTF-8 JSON.", "Send a JSON object as the value."),
    C.EMPTY_RECORD: ("The record has no value (a tombstone).", "Send a JSON object as the value."),
    C.NOT_AN_OBJECT: ("The JSON is no object.", "Send {…} with the fields of a request."),
    C.TOO_DEEP: ("Arrays or objects nest too deep.", "Flatten them, or send them as a string."),
    C.INTEGER_TOO_LARGE: ("An integer does not fit 64 bits.", "Send it as a string."),
    C.REQUEST_TOO_LARGE: (
        "The request is larger than 1 MiB.", "Store the data elsewhere and send a reference."
    ),
    C.UNKNOWN_FIELD: ("A field that no request has.", "Put your own data in `payload`."),
    C.MISSING_FIELD: ("A required field is absent.", "Add the field that the message names."),
    C.INVALID_FIELD: ("A field has a value that it cannot take.", "Mend the field named."),
    C.INVALID_CLOUDEVENT: (
        "The CloudEvent lacks an attribute, or its mode is not known.",
        "Send CloudEvents 1.0 in binary or structured JSON mode, or plain JSON.",
    ),
    C.UNKNOWN_VERSION: (
        "The record has a schema version that this Tidemill does not know.",
        "Upgrade Tidemill, or send a version that it knows.",
    ),
    C.UNKNOWN_TYPE: (
        "No worker runs this type, also after 30 s.",
        "Start a worker that has it or correct the type; then redrive the job.",
    ),
    C.INVALID_PAYLOAD: (
        "The payload does not fit the handler's model.", "Mend the payload; the message has fields."
    ),
    C.HANDLER_ERROR: (
        "The handler raised an exception.", "Mend the handler; the log of the worker has the trace."
    ),
    C.TIMEOUT: (
        "The attempt ran longer than its time-out.",
        "Raise `timeout_seconds`, split the job, or make the handler quicker.",
    ),
    C.RESULT_TOO_LARGE: (
        "The result is larger than 768 KiB.", "Store the data elsewhere and return a reference."
    ),
    C.RESULT_NOT_JSON: (
        "The result cannot be written as JSON.", "Return dicts, lists, strings, numbers or a model."
    ),
    C.WORKER_LOST: (
        "Three workers were lost while they ran it, and then it ended a process of its own.",
        "See why the workers died (memory?); then redrive the job.",
    ),
    C.INTERRUPTED: (
        "Its workers were stopped too often while it ran, and it began anew each time.",
        "Raise `stop_grace_seconds` above what the job takes, or split it; then redrive it.",
    ),
    C.PROCESS_DIED: (
        "The child process of a `process=True` handler died.",
        "Look for a crash of native code or for too little memory.",
    ),
    C.CANCELLED: ("The handler ended because of a cancel.", "Nothing: somebody asked for it."),
    C.STEP_TOO_LARGE: (
        "A step's result is larger than 256 KiB, or all that the job remembers than 16 MiB.",
        "Store the data elsewhere and return a reference.",
    ),
    C.MEMBERS_FAILED: (
        "More members of a `ctx.gather` have failed than it tolerates; the message names them.",
        "Mend what they say; then redrive the parent, which asks for the failed ones alone.",
    ),
    C.NAME_USED_TWICE: (
        "Two steps or waits of one run of a handler have the same name.",
        "Give each a name of its own; in a loop, put the item into it.",
    ),
    C.SUSPENDED_SIDE_BY_SIDE: (
        "A handler asked for something else while it waits already.",
        "Wait for one thing after the other; let steps end before a wait.",
    ),
    C.SUSPENSION_SWALLOWED: (
        "The handler caught the exception that ends its attempt while it waits.",
        "Catch `Exception`, not `BaseException`; let the rest pass.",
    ),
    C.TOO_MANY_SUSPENSIONS: (
        "One run of a job has suspended 10,000 times.",
        "Let it end and ask for the next one, or use a schedule.",
    ),
    C.SIGNAL_TIMEOUT: (
        "The signal that the handler waited for did not come in time.",
        "Catch `SignalTimeout` where that is no error; ask for the job again under another id.",
    ),
    C.INVALID_SIGNAL: (
        "The value of a signal is not what the handler reads it as.",
        "Send what the message names, to another job: the first signal of a name counts.",
    ),
    C.UNKNOWN_JOB: (
        "A command names a job that the ledger does not know.",
        "Check user and id; an ended job is forgotten after the dedupe retention.",
    ),
    C.ANOTHER_BODY: (
        "A member has the `job_id` of a job with another body.",
        "Give it an id of its own, or the very same request.",
    ),
    C.TOO_MANY_WATCHERS: (
        "More than 1,000 gathers wait for one job.", "Ask for another job, by another `job_id`."
    ),
    C.BROKEN_FORWARD: (
        "A record on `jobs.internal` has no envelope that a ledger writes.",
        "Send requests to `jobs.requested`; only ledgers write to `jobs.internal`.",
    ),
    C.BROKEN_MESSAGE: (
        "A message between partitions cannot be read.",
        "Report it: only ledgers write messages. The records around it were taken.",
    ),
    C.RECORDS_LOST: (
        "Records of an input were deleted from the log before they were read.",
        "Ask their senders to send again what was not answered; lengthen the topic's retention.",
    ),
}
