"""Jobs that wait for a worker that is not there.

Owns the checks of what the ledger has told of such jobs, as ClickHouse has it. Refuses to know who
beats now: what waits because nobody runs it was found so by the ledger.
"""

from __future__ import annotations

from typing import Any, Final

from tidemill.agents.queries import load
from tidemill.agents.settings import CommonSettings
from tidemill.doctor.finding import ANSWER_SECONDS, Check, Finding
from tidemill.schemas.safe_text import safe_text
from tidemill.schemas.words import Reason
from tidemill.sql import query_rows

NAMED_MAX: Final = 5  # queues or types that a finding names
ROWS_MAX: Final = 200  # groups of jobs that are looked at


def _rows(settings: CommonSettings) -> list[dict[str, Any]]:
    sql = load("nobody_runs").sql
    return query_rows(
        settings.clickhouse, sql, {"limit": str(ROWS_MAX)}, timeout_seconds=ANSWER_SECONDS
    )


def queues(settings: CommonSettings) -> Finding:
    """Queues with jobs and without a living worker."""
    found = [row for row in _rows(settings) if row["reason"] == Reason.QUEUE_NOT_SERVED]
    names = sorted({row["queue"] for row in found})
    if not names:
        return Finding("queues", "ok", "no job waits in a queue without workers")
    return Finding(
        "queues", "failed", f"no living worker serves {_listed(names)}; their jobs wait",
        "start a worker with a handler of that queue (see --queues); nothing is lost meanwhile",
    )


def types(settings: CommonSettings) -> Finding:
    """Types that no living worker of the queue runs."""
    found = [row for row in _rows(settings) if row["reason"] != Reason.QUEUE_NOT_SERVED]
    if not found:
        return Finding("types", "ok", "no job waits for a type that nobody runs")
    names = sorted({
        f"{row['type']} in {row['queue']}" if row["queue"] else row["type"] for row in found
    })
    count = sum(int(row["jobs"]) for row in found)
    return Finding(
        "types", "failed", f"{count} job(s) wait for a type that no living worker runs: "
        f"{_listed(names)}",
        "start a worker that has the type in that queue, or correct the type; after 30 s such a "
        "job fails as UNKNOWN_TYPE and can be redriven",
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(safe_text(name)) for name in names[:NAMED_MAX])
    rest = len(names) - NAMED_MAX
    return shown if rest <= 0 else f"{shown} and {rest} more"


CHECKS: Final = (
    Check(
        "queues", queues, needs="clickhouse",
        asks="whether jobs wait in a queue that no living worker serves",
    ),
    Check(
        "types", types, needs="clickhouse",
        asks="whether jobs wait for a type that no living worker runs",
    ),
)
