"""Questions to ClickHouse about single jobs, for the client and the command line.

Owns their SQL and the way from rows to `CompletedJob`. Refuses to know how an answer is shown.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

from tidemill.agents.queries import load
from tidemill.completed import CompletedJob
from tidemill.schemas import SCHEMA_VERSION
from tidemill.schemas.events import JobError
from tidemill.schemas.instants import instant_text
from tidemill.schemas.requests import parse_instant
from tidemill.schemas.words import TERMINAL_KINDS, State
from tidemill.sql import ANSWER_SECONDS, query_rows

_ENDS: Final = ", ".join(f"'{kind}'" for kind in sorted(TERMINAL_KINDS))

_THIS_JOB: Final = "FROM job_events WHERE user_id = {user:String} AND job_id = {job:String}"

# The latest end of a job, from the log of its transitions. An id may have been used before, so the
# job is the one that the first answer since the request speaks of: its birth, or the word that it
# was known already.
_COMPLETED: Final = f"""
WITH
    (
        SELECT toUnixTimestamp64Milli(min(occurred_at)) {_THIS_JOB}
            AND (sequence = 1 OR event IN ('duplicate_ignored', 'conflict_ignored'))
            AND occurred_at >= fromUnixTimestamp64Milli({{since_ms:Int64}}, 'UTC')
    ) AS answered_ms,
    (
        SELECT max(incarnation) {_THIS_JOB} AND sequence > 0 AND incarnation <= answered_ms
    ) AS born_ms
SELECT
    type, queue, event, reason, error_code, error_message, error_retryable, attempt, run, sequence,
    wait_ms, run_ms, data, incarnation AS requested_ms,
    toUnixTimestamp64Milli(occurred_at) AS finished_ms
{_THIS_JOB} AND event IN ({_ENDS}) AND sequence > 0 AND incarnation = born_ms
    AND run >= {{run:UInt32}}
ORDER BY sequence DESC
LIMIT 1
"""

_LIST: Final = """
SELECT
    job_id, user_id, type, queue, priority, status, reason, error_code, error_message, run,
    attempts, requested_at, updated_at, finished_at, due_at, wait_ms, run_ms, worker_id, tags,
    batch_id, parent_job_id
FROM jobs
WHERE (empty({statuses:Array(String)}) OR has({statuses:Array(String)}, status))
    AND ({type:String} = '' OR type = {type:String})
    AND ({user:String} = '' OR user_id = {user:String})
    AND ({queue:String} = '' OR queue = {queue:String})
    AND ({tag:String} = '' OR has(tags, {tag:String}))
    AND ({batch:String} = '' OR batch_id = {batch:String})
    AND ({parent:String} = '' OR parent_job_id = {parent:String})
    AND requested_at >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
ORDER BY requested_at DESC, user_id, job_id
LIMIT {limit:UInt32}
"""

# What the last event of a kind carries, for one life of a job.
_DETAILS: Final = """
SELECT event, argMax(data, (occurred_at, kafka_offset)) AS last
FROM job_events
WHERE user_id = {user:String} AND job_id = {job:String} AND incarnation = {incarnation:UInt64}
    AND event IN ('requested', 'progressed', 'succeeded', 'attempt_failed') AND data != ''
GROUP BY event
"""

JOBS_OF_ONE_ID_MAX: Final = 100  # users that may have used the same job id
STORY_EVENTS_MAX: Final = 1_000  # the whole story is a question for `tidemill sql`

_AGO: Final = re.compile(r"^([0-9]{1,6})([smhd])$")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def since_of(text: str) -> datetime:
    """An instant from "15m", "2h", "7d" (ago) or RFC 3339. Raises ValueError."""
    match = _AGO.match(text)
    if match is not None:
        try:
            return datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: int(match[1])})
        except OverflowError:
            unit = _UNITS[match[2]]
            raise ValueError(f"{text} ago is before all time; give fewer {unit}") from None
    found = parse_instant(text)
    assert isinstance(found, datetime)
    return found


def list_jobs(
    clickhouse: str,
    *,
    statuses: tuple[str, ...] = (),
    type_name: str | None = None,
    user_id: str | None = None,
    queue: str | None = None,
    tag: str | None = None,
    batch_id: str | None = None,
    parent_job_id: str | None = None,
    since: datetime | None = None,
    limit: int,
) -> list[dict[str, Any]]:
    """Jobs by filter, the newest request first. Raises SqlError."""
    params = {
        "statuses": "[" + ",".join(f"'{one}'" for one in statuses) + "]",
        "type": type_name or "",
        "user": user_id or "",
        "queue": queue or "",
        "tag": tag or "", "batch": batch_id or "", "parent": parent_job_id or "",
        "since_ms": str(0 if since is None else int(since.timestamp() * 1000)),
        "limit": str(limit),
    }
    return query_rows(clickhouse, _LIST, params)


def job_rows(clickhouse: str, job_id: str, user_id: str | None) -> list[dict[str, Any]]:
    """The latest state of the jobs with this id, one row a user. Raises SqlError."""
    params = {"job_id": job_id, "user_id": user_id or "", "limit": str(JOBS_OF_ONE_ID_MAX)}
    return query_rows(clickhouse, load("job").sql, params)


def story_rows(clickhouse: str, job_id: str, user_id: str) -> list[dict[str, Any]]:
    """Every event of one job, oldest first, up to a bound. Raises SqlError."""
    params = {
        "job_id": job_id, "user_id": user_id, "limit": str(STORY_EVENTS_MAX), "offset": "0"
    }
    return query_rows(clickhouse, load("job_story").sql, params)


def job_details(
    clickhouse: str, job_id: str, user_id: str, incarnation: int
) -> dict[str, Any]:
    """Payload, progress (percent, stage, message), result and the last trace of one job; None for
    what there is not. Raises SqlError."""
    params = {"user": user_id, "job": job_id, "incarnation": str(incarnation)}
    rows = query_rows(clickhouse, _DETAILS, params)
    last = {row["event"]: orjson.loads(row["last"]) for row in rows}
    return {
        "payload": last.get("requested", {}).get("payload"),
        "progress": last.get("progressed"),
        "result": last.get("succeeded", {}).get("result"),
        "trace": last.get("attempt_failed", {}).get("trace"),
    }


def find_completed(
    clickhouse: str,
    user_id: str,
    job_id: str,
    run: int,
    *,
    since_ms: int,
    timeout_seconds: float = ANSWER_SECONDS,
) -> CompletedJob | None:
    """The end of a job as `jobs.completed` told it; None when ClickHouse knows none.

    `since_ms`: an instant shortly before the job was asked for, epoch ms. Raises SqlError.
    """
    params = {"user": user_id, "job": job_id, "run": str(run), "since_ms": str(max(0, since_ms))}
    rows = query_rows(clickhouse, _COMPLETED, params, timeout_seconds=timeout_seconds)
    return _completed(user_id, job_id, rows[0]) if rows else None


def _completed(user_id: str, job_id: str, row: dict[str, Any]) -> CompletedJob:
    requested_ms = int(row["requested_ms"])
    wait_ms = row["wait_ms"]
    data = orjson.loads(row["data"]) if row["data"] else {}
    return CompletedJob(
        job_id=job_id,
        user_id=user_id,
        type=row["type"],
        queue=row["queue"],
        status=State(row["event"]),
        reason=row["reason"] or None,
        result=data.get("result"),
        error=_error(row),
        attempts=row["attempt"],
        requested_at=instant_text(requested_ms),
        started_at=None if wait_ms is None else instant_text(requested_ms + wait_ms),
        finished_at=instant_text(int(row["finished_ms"])),
        wait_ms=wait_ms,
        run_ms=row["run_ms"],
        run=row["run"],
        sequence=row["sequence"],
        schema_version=SCHEMA_VERSION,
    )


def _error(row: dict[str, Any]) -> JobError | None:
    if not row["error_code"]:
        return None
    return JobError(
        code=row["error_code"], message=row["error_message"], retryable=row["error_retryable"]
    )
