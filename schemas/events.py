"""What happened: the event on `jobs.events` and the record on `jobs.completed`.

Owns the public shape of both: the contract from which the documentation is generated. Refuses to
know who decides (`streams`), how the bytes are made (`tidemill.schemas.event_writer`) and where
they go (`agents`).

A reader passes over fields that it does not know: a sink or a client may be older than the ledger.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tidemill.schemas.words import EventKind, Priority, State


class JobError(BaseModel):
    """Why an attempt or a job failed."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    code: str = Field(description="One of the engine's error codes, or the handler's own.")
    message: str = Field(description="For a person; no stack trace. Cut at 2,000 characters.")
    retryable: bool = Field(description="Whether another attempt could have helped.")


class Cause(BaseModel):
    """The input record that led to an event; absent when a timer or a worker's silence did."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    topic: str
    partition: int
    offset: int


class JobEvent(BaseModel):
    """One record on `jobs.events`; key = user_id. The contract of `EventWriter`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int = Field(
        description="1. Refuse another version; pass over fields that you do not know."
    )
    event_id: str = Field(description="Unique; the same on a replay.")
    event: EventKind = Field(description="What happened.")
    job_id: str
    user_id: str
    type: str
    queue: str = Field(description='"" until the type is known.')
    priority: Priority
    incarnation: int = Field(
        description="Epoch ms of the first acceptance: orders reuses of a job_id after the "
        "dedupe retention."
    )
    run: int = Field(description="1, and one more with each redrive.")
    sequence: int | None = Field(
        description="1, 2, 3 … without a gap per job incarnation; null for audit events."
    )
    attempt: int = Field(description="Attempts begun in this run, 0 before the first dispatch.")
    epoch: int = Field(description="Dispatches of this job so far; outcomes must carry the last.")
    occurred_at: str = Field(description="RFC 3339, UTC, ms. Never goes back in a partition.")
    state_before: State | None = Field(description="null before the first event.")
    state_after: State | None = Field(
        description="null for a command about a job that nobody has asked for yet: `cancel_kept`, "
        "`signal_kept`, and `command_refused` when it is forgotten."
    )
    reason: str | None = Field(
        description="A word of `tidemill.schemas.words.Reason`, or a handler's own."
    )
    error: JobError | None
    worker_id: str | None
    due_at: str | None = Field(
        description="When it goes on: scheduled, deferred, retry_scheduled, suspended. "
        "cancel_kept, signal_kept: until when the command waits."
    )
    wait_ms: int | None = Field(
        description="Terminal events and attempt events: from requested to the last start."
    )
    run_ms: int | None = Field(description="From the start to the end of that attempt.")
    cause: Cause | None
    data: dict[str, Any] | None = Field(
        description="requested: payload and resolved policy; succeeded: result; progressed: "
        "percent, stage, message; attempt_failed: trace, where the handler raised one; others: "
        "null."
    )
    tags: tuple[str, ...] = Field(
        default=(), description="Of the request. Left out with the next two when there is none."
    )
    batch_id: str | None = Field(default=None, description="Of the request.")
    parent_job_id: str | None = Field(
        default=None, description="The job of the same user whose handler asked for this one."
    )


class CollapsedInto(BaseModel):
    """The job whose run another one shared, and how that run ended."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    job_id: str
    run: int
    status: State = Field(description="succeeded, failed, cancelled, skipped or expired.")
    result_omitted: bool = Field(
        default=False, description="The result is too large for so many: it is at that job alone."
    )


class CompletedJob(BaseModel):
    """One record on `jobs.completed`; key = user_id. Exactly one for each (user, job, run)."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    job_id: str
    user_id: str
    type: str
    queue: str
    status: State = Field(description="succeeded, failed, cancelled, skipped or expired.")
    reason: str | None = Field(description="Why it was skipped, cancelled, …; else null.")
    result: Any = Field(
        description="What the handler returned; null unless succeeded. When collapsed: what the "
        "winner's handler returned."
    )
    error: JobError | None = Field(description="Set when failed.")
    attempts: int = Field(description="Attempts begun in this run.")
    requested_at: str
    started_at: str | None = Field(description="Start of the last attempt; null if it never ran.")
    finished_at: str
    wait_ms: int | None = Field(description="requested_at to started_at.")
    run_ms: int | None = Field(description="started_at to the end of the last attempt.")
    run: int
    sequence: int = Field(description="The sequence of the terminal event on `jobs.events`.")
    collapsed_into: CollapsedInto | None = Field(
        default=None,
        description="Whose run it shared, when its reason is `collapsed`; else it is not there.",
    )
    schema_version: int
