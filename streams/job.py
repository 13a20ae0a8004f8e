"""A job as the ledger holds it: what was asked (`Spec`) and how far it is (`Job`).

Owns the two shapes and their copies. Refuses to know which change is legal: `streams.lifecycle`.
Both are never changed once built: `evolve` makes a new `Job`, so an aborted transaction is undone
by putting the old object back.
"""

from __future__ import annotations

from typing import Any

from schemas.words import State

JobKey = tuple[str, str]
"""(user_id, job_id): identity everywhere."""


class Spec:
    """What was asked for, with the handler's policy filled in. Times are epoch ms."""

    __slots__ = (
        "batch_id",
        "expires_at",
        "fingerprint",
        "job_id",
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
        *,
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
        self.row_key = row_key  # of its state row: made once, written several times

    @property
    def key(self) -> JobKey:
        return (self.user_id, self.job_id)

    def resolved(
        self, *, queue: str, max_attempts: int, timeout_ms: int, unique_key: str | None
    ) -> Spec:
        """The same request with the policy of its handler, once that is known."""
        return Spec(
            self.user_id, self.job_id, self.type, queue, self.priority, self.payload,
            self.requested_at, self.fingerprint,
            number=self.number, max_attempts=max_attempts, timeout_ms=timeout_ms,
            unique_key=unique_key, run_at=self.run_at, expires_at=self.expires_at,
            source=self.source, tags=self.tags,
            batch_id=self.batch_id, parent_job_id=self.parent_job_id,
            traceparent=self.traceparent, row_key=self.row_key,
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
        "is_cancel_requested",
        "queued_at",
        "reason",
        "rescues",
        "run",
        "sequence",
        "spec",
        "started_at",
        "state",
        "worker",
    )

    def __init__(self, spec: Spec, state: State) -> None:
        self.spec = spec
        self.state = state
        self.sequence = 1
        self.run = 1
        self.attempt = 0  # attempts begun in this run
        self.epoch = 0  # dispatches in all runs
        self.rescues = 0  # in this run
        self.queued_at = spec.requested_at  # of this run
        self.due_at: int | None = None  # when a waiting job goes on
        self.reason: str | None = None  # why it waits, or why it ended
        self.dispatched_at: int | None = None
        self.started_at: int | None = None  # of the last attempt
        self.finished_at: int | None = None
        self.worker: tuple[str, int] | None = None  # (worker_id, incarnation) while it runs
        self.is_cancel_requested = False
        self.holds_limit = False  # accepted under a `skip` limit and not dispatched yet
        self.error: dict[str, Any] | None = None  # of the last failed attempt

    def copy(self) -> Job:
        """A new object with the same content: `evolve` changes the copy."""
        new = Job.__new__(Job)
        new.spec = self.spec
        new.state = self.state
        new.sequence = self.sequence
        new.run = self.run
        new.attempt = self.attempt
        new.epoch = self.epoch
        new.rescues = self.rescues
        new.queued_at = self.queued_at
        new.due_at = self.due_at
        new.reason = self.reason
        new.dispatched_at = self.dispatched_at
        new.started_at = self.started_at
        new.finished_at = self.finished_at
        new.worker = self.worker
        new.is_cancel_requested = self.is_cancel_requested
        new.holds_limit = self.holds_limit
        new.error = self.error
        return new

    @property
    def key(self) -> JobKey:
        return (self.spec.user_id, self.spec.job_id)

    @property
    def is_dead_letter(self) -> bool:
        """Failed and kept whole, so that it can be redriven. A refused request has no payload."""
        return self.state is State.FAILED and bool(self.spec.payload)
