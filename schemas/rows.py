"""ClickHouse rows: the columns of `job_events`, `jobs` and the minute roll-ups.

Owns column names, types and meanings; a test compares them with the migrations' tables. Refuses to
know how rows get there (`agents.sink`).
"""

from __future__ import annotations

from typing import Final

JOB_EVENTS: Final[dict[str, tuple[str, str]]] = {
    "kafka_partition": ("UInt32", "Partition of jobs.events."),
    "kafka_offset": ("UInt64", "Offset there: (kafka_partition, kafka_offset) is unique."),
    "event_id": ("String", "Unique; the same on a replay."),
    "event": ("LowCardinality(String)", "What happened: a word of EventKind."),
    "job_id": ("String", "The job, within its user."),
    "user_id": ("String", "Whose job."),
    "type": ("LowCardinality(String)", "Which handler."),
    "queue": ("LowCardinality(String)", "'' until the type is known."),
    "priority": ("LowCardinality(String)", "high, medium, low."),
    "incarnation": ("UInt64", "Epoch ms of the first acceptance of this job."),
    "run": ("UInt32", "1, and one more with each redrive."),
    "sequence": ("UInt32", "1, 2, 3 … per job incarnation; 0 for audit events."),
    "attempt": ("UInt32", "Attempts begun in this run."),
    "epoch": ("UInt32", "Dispatches so far."),
    "occurred_at": ("DateTime64(3, 'UTC')", "When it was decided."),
    "state_before": ("LowCardinality(String)", "'' before the first event."),
    "state_after": ("LowCardinality(String)", "A word of State."),
    "reason": ("LowCardinality(String)", "'' when there is none."),
    "error_code": ("LowCardinality(String)", "'' when there is no error."),
    "error_message": ("String", "'' when there is no error."),
    "error_retryable": ("Bool", "false when there is no error."),
    "error_trace": ("String", "Of attempt_failed: where the handler raised; '' when not known."),
    "worker_id": ("LowCardinality(String)", "'' when no worker is concerned."),
    "due_at": ("Nullable(DateTime64(3, 'UTC'))", "When the job goes on."),
    "wait_ms": ("Nullable(UInt64)", "From requested to the last start."),
    "run_ms": ("Nullable(UInt64)", "From the start to the end of that attempt."),
    "cause_topic": ("LowCardinality(String)", "Input that led to it; '' for timers."),
    "cause_partition": ("Nullable(UInt32)", "Its partition."),
    "cause_offset": ("Nullable(UInt64)", "Its offset."),
    "data": ("String", "JSON text: payload, result, progress; '' when there is none."),
}

JOBS: Final[dict[str, tuple[str, str]]] = {
    "user_id": ("String", "Whose job."),
    "job_id": ("String", "The job, within its user."),
    "type": ("LowCardinality(String)", "Which handler."),
    "queue": ("LowCardinality(String)", "'' until the type is known."),
    "priority": ("LowCardinality(String)", "high, medium, low."),
    "status": ("LowCardinality(String)", "The latest state, a word of State."),
    "reason": ("LowCardinality(String)", "Of the latest event."),
    "error_code": ("LowCardinality(String)", "Of the latest event."),
    "error_message": ("String", "Of the latest event."),
    "run": ("UInt32", "1, and one more with each redrive."),
    "attempts": ("UInt32", "Attempts begun in this run."),
    "sequence": ("UInt32", "Of the latest event."),
    "incarnation": ("UInt64", "Epoch ms of the first acceptance."),
    "requested_at": ("DateTime64(3, 'UTC')", "When it was accepted."),
    "updated_at": ("DateTime64(3, 'UTC')", "When the latest event was decided."),
    "finished_at": ("Nullable(DateTime64(3, 'UTC'))", "NULL while it lives."),
    "due_at": ("Nullable(DateTime64(3, 'UTC'))", "When a waiting job goes on."),
    "wait_ms": ("Nullable(UInt64)", "Of the latest event: from requested to the start; else NULL."),
    "run_ms": ("Nullable(UInt64)", "Of the latest event, once an attempt ended; else NULL."),
    "worker_id": ("LowCardinality(String)", "Of the latest event: whose attempt; '' when none."),
}
"""`jobs` is a view that gives one row a job (no FINAL needed) over the table `jobs_latest`."""

JOB_MINUTES: Final[dict[str, tuple[str, str]]] = {
    "minute": ("DateTime('UTC')", "Start of the minute of occurred_at."),
    "queue": ("LowCardinality(String)", "The queue."),
    "type": ("LowCardinality(String)", "The handler."),
    "event": ("LowCardinality(String)", "A word of EventKind."),
    "reason": ("LowCardinality(String)", "'' when there is none."),
    "error_code": ("LowCardinality(String)", "'' when there is none."),
    "events": ("UInt64", "How many: sum it, rows of one key may be several until merged."),
    "wait_ms_sum": ("UInt64", "Sum of wait_ms."),
    "run_ms_sum": ("UInt64", "Sum of run_ms."),
}
"""`job_minutes` is the minute roll-up: a SummingMergeTree by its first six columns."""
