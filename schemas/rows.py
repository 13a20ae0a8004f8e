"""ClickHouse rows: the columns of `job_events`, `jobs` and the minute roll-ups.

Owns column names, types and meanings; a test compares them with the migrations' tables. Refuses to
know how rows get there (`tidemill.agents.sink`).
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
    "tags": ("Array(String)", "Of the request; [] when there is none."),
    "batch_id": ("String", "Of the request; '' when there is none."),
    "parent_job_id": ("String", "The job that asked for this one, of the same user; ''."),
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
    "tags": ("Array(String)", "Of the request; [] when there is none."),
    "batch_id": ("String", "Of the request; '' when there is none."),
    "parent_job_id": ("String", "The job that asked for this one, of the same user; ''."),
}
"""`jobs` is a view that gives one row a job (no FINAL needed) over the table `jobs_latest`."""

REFUSED_REQUESTS: Final[dict[str, tuple[str, str]]] = {
    "kafka_partition": ("UInt32", "Partition of jobs.dead."),
    "kafka_offset": ("UInt64", "Offset there: (kafka_partition, kafka_offset) is unique."),
    "refused_at": ("DateTime64(3, 'UTC')", "When the record was put on jobs.dead."),
    "stage": (
        "LowCardinality(String)", "request, command, outcome, event, message; unknown: not ours."
    ),
    "code": ("LowCardinality(String)", "A word of ErrorCode."),
    "message": ("String", "What is wrong and what to do."),
    "field": ("String", "The field at fault; '' when there is none."),
    "source_topic": ("LowCardinality(String)", "Where the record stood."),
    "source_partition": ("Nullable(UInt32)", "Its partition there."),
    "source_offset": ("Nullable(UInt64)", "Its offset there."),
    "source_at": ("Nullable(DateTime64(3, 'UTC'))", "Its timestamp."),
    "user_id": ("String", "Whose it was; '' when not known."),
    "job_id": ("String", "Which job; '' when not known."),
    "key": ("String", "The record's key, its first 256 characters."),
    "value": ("String", "Its value, the first 8,192 characters; control characters replaced."),
    "value_bytes": ("UInt64", "How many bytes the value has on jobs.dead."),
}
"""Refused records, one row each. Failed jobs are on `jobs.dead` too; their rows are in `jobs`."""

LOG_GAPS: Final[dict[str, tuple[str, str]]] = {
    "topic": ("LowCardinality(String)", "Whose records are missing: jobs.events or jobs.dead."),
    "kafka_partition": ("UInt32", "Its partition."),
    "first_offset": ("UInt64", "The first offset that is missing."),
    "last_offset": ("UInt64", "The last one."),
    "noticed_at": ("DateTime64(3, 'UTC')", "When the sink noticed."),
}
"""Records that retention deleted before the sink had read them. Read it with FINAL."""

SINK_MARKS: Final[dict[str, tuple[str, str]]] = {
    "mark": ("String", "What the notes beside committed offsets name."),
    "made_at": ("DateTime64(3, 'UTC')", "When the sink made it."),
}
"""Marks by which a sink sees whether its committed offsets were made for this very store."""

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
