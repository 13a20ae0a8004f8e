"""A job as the ledger holds it: what was asked (`Spec`) and how far it is (`Job`).

Owns the two shapes and their copies. Refuses to know which change is legal:
`tidemill.streams.lifecycle`. Both are never changed once built: `evolve` makes a new `Job`, so an
aborted transaction is undone by putting the old object back.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from tidemill.schemas.words import State

JobKey = tuple[str, ...]
"""(user_id, job_id): identity everywhere. Two strings; of a tuple whose type gives its length
compiled code would make another one at each use, and every index holds this very tuple."""

WaitKey = tuple[str, ...]
"""What a job waits for: the name of the rule that holds it back, then what of it."""

HANDED_BACK: Final[WaitKey] = ("handed_back",)
"""Its worker did not run its type: it takes its old place in line at `due_at`."""

NO_WORKER: Final = "no_worker"
"""It waits for a slot as any other, and its history says why that takes long: behind the word."""

UNKNOWN_TYPE: Final = "unknown_type"
"""No worker has told of its type yet, which stands behind the word."""

SUSPENSION: Final = "suspension"
"""Its handler waits; behind the word: the kind of what it waits for, and the name of that."""

RATE_LIMIT: Final = "rate_limit"
"""A `delay` limit holds it back; behind the word: user and type."""

Worker = tuple[str, int]
"""(worker_id, incarnation): who runs an attempt."""


_FAILED: Final = State.FAILED
WAITING_STATES: Final = frozenset({State.PENDING, State.SCHEDULED, State.RETRYING})


def labels_json(
    tags: tuple[str, ...], batch_id: str | None, parent_job_id: str | None
) -> bytes:
    """Tags, batch and parent as they stand in an event; b"" where there is none of them."""
    if not tags and batch_id is None and parent_job_id is None:
        return b""
    labels = {"tags": tags, "batch_id": batch_id, "parent_job_id": parent_job_id}
    return orjson.dumps(labels)[1:-1]


class Spec:
    """What was asked for, with the handler's policy filled in. Times are epoch ms."""

    __slots__ = (
        "batch_id",
        "expires_at",
        "fingerprint",
        "job_id",
        "key",
        "labels",
        "max_attempts",
        "number",
        "parent_job_id",
        "payload",
        "priority",
        "queue",
        "requested_at",
        "row_key",
        "run_at",
        "source",
        "tags",
        "timeout_ms",
        "traceparent",
        "type",
        "unique_key",
        "user_id",
    )

    def __init__(
        self,
        user_id: str,
        job_id: str,
        type: str,
        queue: str,
        priority: str,
        payload: bytes,
        requested_at: int,
        fingerprint: int,
        number: int = 0,
        max_attempts: int = 0,
        timeout_ms: int = 0,
        unique_key: str | None = None,
        run_at: int | None = None,
        expires_at: int | None = None,
        source: str | None = None,
        tags: tuple[str, ...] = (),
        batch_id: str | None = None,
        parent_job_id: str | None = None,
        traceparent: str | None = None,
        row_key: bytes | None = None,
    ) -> None:
        self.user_id = user_id
        self.job_id = job_id
        self.key: JobKey = (user_id, job_id)  # made once
        self.type = type
        self.queue = queue  # "" until the type is known
        self.priority = priority
        self.payload = payload  # JSON text
        self.requested_at = requested_at  # of the first acceptance: the incarnation
        self.fingerprint = fingerprint  # of the request's body: tells a repeat from a conflict
        self.number = number  # acceptances of the partition so far: first come, first served
        self.max_attempts = max_attempts  # 0 until the type is known
        self.timeout_ms = timeout_ms  # 0 until the type is known
        self.unique_key = unique_key
        self.run_at = run_at
        self.expires_at = expires_at
        self.source = source
        self.tags = tags
        self.batch_id = batch_id
        self.parent_job_id = parent_job_id
        self.traceparent = traceparent
        # By which people find jobs; with each event of the job, and most jobs have none.
        self.labels = labels_json(tags, batch_id, parent_job_id)
        self.row_key = row_key  # of its state row: made once, written several times

    def resolved(
        self, queue: str, max_attempts: int, timeout_ms: int, unique_key: str | None
    ) -> Spec:
        """The same request with the policy of its handler, once that is known."""
        return Spec(
            self.user_id, self.job_id, self.type, queue, self.priority, self.payload,
            self.requested_at, self.fingerprint, self.number, max_attempts, timeout_ms,
            unique_key, self.run_at, self.expires_at, self.source, self.tags, self.batch_id,
            self.parent_job_id, self.traceparent, self.row_key,
        )


class Job:
    """How far a job is. A fold of its events; nothing else may change it."""

    __slots__ = (
        "attempt",
        "dispatched_at",
        "due_at",
        "epoch",
        "error",
        "finished_at",
        "holds_limit",
        "interruptions",
        "is_cancel_requested",
        "queued_at",
        "reason",
        "rescues",
        "returns",
        "run",
        "sequence",
        "spec",
        "started_at",
        "state",
        "suspensions",
        "waits_for",
        "worker",
    )

    def __init__(
        self,
        spec: Spec,
        state: State,
        sequence: int,
        run: int,
        attempt: int,
        epoch: int,
        rescues: int,
        queued_at: int,
        due_at: int | None,
        reason: str | None,
        dispatched_at: int | None,
        started_at: int | None,
        finished_at: int | None,
        worker: Worker | None,
        is_cancel_requested: bool,
        holds_limit: bool,
        error: dict[str, Any] | None,
        returns: int = 0,
        interruptions: int = 0,
        waits_for: WaitKey | None = None,
        suspensions: int = 0,
    ) -> None:
        self.spec = spec
        self.state = state
        self.sequence = sequence
        self.run = run
        self.attempt = attempt  # attempts begun in this run
        self.epoch = epoch  # dispatches in all runs
        self.rescues = rescues  # in this run
        self.queued_at = queued_at  # of this run
        self.due_at = due_at  # when a waiting job goes on
        self.reason = reason  # why it waits, or why it ended, in a word for readers
        self.dispatched_at = dispatched_at
        self.started_at = started_at  # of the last attempt
        self.finished_at = finished_at
        self.worker = worker  # while it runs
        self.is_cancel_requested = is_cancel_requested
        self.holds_limit = holds_limit  # accepted under a `skip` limit and not dispatched yet
        self.error = error  # of the last failed attempt
        self.returns = returns  # hand-backs in this run
        self.interruptions = interruptions  # stops of its workers while it ran, in this run
        # What holds a scheduled job back (None: its instant alone), or an awaiting one waits for.
        self.waits_for = waits_for
        self.suspensions = suspensions  # in this run

    @staticmethod
    def first(spec: Spec, state: State, *, holds_limit: bool) -> Job:
        """The job after its first event."""
        return Job(
            spec, state, 1, 1, 0, 0, 0, spec.requested_at, None, None, None, None, None, None,
            False, holds_limit, None,
        )

    @staticmethod
    def refused(key: JobKey, refused_at: int, row_key: bytes) -> Job:
        """A job whose only request was refused, from what is remembered of it."""
        spec = Spec(key[0], key[1], "", "", "medium", b"", refused_at, 0, row_key=row_key)
        return Job(
            spec, _FAILED, 2, 1, 0, 0, 0, refused_at, None, None, None, None, refused_at, None,
            False, False, None,
        )

    def begun_again(
        self, spec: Spec, state: State, sequence: int, run: int, at: int, *, holds_limit: bool
    ) -> Job:
        """The same job with a request that can be taken, after one that was refused."""
        return Job(
            spec, state, sequence, run, 0, self.epoch, 0, at, None, None, None,
            None, None, None, False, holds_limit, None,
        )

    def moved_to(self, state: State, sequence: int, run: int, attempt: int, epoch: int) -> Job:
        """A new object in `state` with the numbers of an event: `evolve` changes the rest of it."""
        return Job(
            self.spec, state, sequence, run, attempt, epoch,
            self.rescues, self.queued_at, self.due_at, self.reason, self.dispatched_at,
            self.started_at, self.finished_at, self.worker, self.is_cancel_requested,
            self.holds_limit, self.error, self.returns, self.interruptions, self.waits_for,
            self.suspensions,
        )

    @property
    def key(self) -> JobKey:
        return self.spec.key

    @property
    def waits(self) -> bool:
        """Alive, and no attempt is out."""
        return self.state in WAITING_STATES

    @property
    def is_dead_letter(self) -> bool:
        """Failed and kept whole, so that it can be redriven. A refused request has no payload."""
        return self.state is _FAILED and bool(self.spec.payload)

    @property
    def is_refused(self) -> bool:
        """Its request could not be taken, and nobody has sent a mended one."""
        return self.state is _FAILED and not self.spec.payload
