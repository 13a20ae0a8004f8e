"""Questions to ClickHouse about single jobs, for the client and the command line.

Owns their SQL and the way from rows to `CompletedJob`. Refuses to know how an answer is shown.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from schemas import SCHEMA_VERSION
from schemas.events import CompletedJob, JobError, instant_text
from schemas.words import TERMINAL_KINDS, State
from tidemill.sql import query_rows

_ENDS: Final = ", ".join(f"'{kind}'" for kind in sorted(TERMINAL_KINDS))

# The latest end of a job, from the log of its transitions, beside its request.
_COMPLETED: Final = f"""
SELECT
    type, queue, event, reason, error_code, error_message, error_retryable, attempt, run, sequence,
    wait_ms, run_ms, data,
    toUnixTimestamp64Milli(occurred_at) AS finished_ms,
    (
        SELECT toUnixTimestamp64Milli(min(occurred_at)) FROM job_events
        WHERE user_id = {{user:String}} AND job_id = {{job:String}} AND event = 'requested'
    ) AS requested_ms
FROM job_events
WHERE user_id = {{user:String}} AND job_id = {{job:String}} AND event IN ({_ENDS})
    AND run >= {{run:UInt32}}
ORDER BY incarnation DESC, sequence DESC
LIMIT 1
"""


def find_completed(clickhouse: str, user_id: str, job_id: str, run: int) -> CompletedJob | None:
    """The end of a job as `jobs.completed` told it; None when ClickHouse knows none.

    Raises SqlError.
    """
    rows = query_rows(
        clickhouse, _COMPLETED, {"user": user_id, "job": job_id, "run": str(run)}
    )
    return _completed(user_id, job_id, rows[0]) if rows else None


def _completed(user_id: str, job_id: str, row: dict[str, Any]) -> CompletedJob:
    requested_ms = int(row["requested_ms"] or row["finished_ms"])
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
