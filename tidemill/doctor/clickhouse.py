"""ClickHouse: whether it answers, has the tables, and goes by our clock.

Owns the checks that ask ClickHouse. Refuses to make a table.
"""

from __future__ import annotations

import time
from typing import Final

from agents.settings import CommonSettings
from schemas.rows import JOB_EVENTS, JOB_MINUTES, JOBS
from schemas.words import EventKind, Reason
from tidemill.doctor.finding import ANSWER_SECONDS, Check, Finding
from tidemill.sql import SqlError, query_rows

SKEW_SECONDS_MAX: Final = 5.0  # wait times are read against other clocks


def reachable(settings: CommonSettings) -> Finding:
    begun = time.monotonic()
    try:
        rows = query_rows(
            settings.clickhouse, "SELECT version() AS version", timeout_seconds=ANSWER_SECONDS
        )
    except SqlError as error:
        return Finding(
            "clickhouse", "failed", str(error),
            "start `tidemill dev`, or set --clickhouse to your server's HTTP address",
        )
    took_ms = (time.monotonic() - begun) * 1000
    return Finding("clickhouse", "ok", f"version {rows[0]['version']}, {took_ms:.0f} ms")


def tables(settings: CommonSettings) -> Finding:
    rows = query_rows(
        settings.clickhouse,
        "SELECT table, groupArray(name) AS columns FROM system.columns "
        "WHERE database = currentDatabase() GROUP BY table",
    )
    there = {row["table"]: set(row["columns"]) for row in rows}
    wanted = {"job_events": JOB_EVENTS, "jobs": JOBS, "job_minutes": JOB_MINUTES}
    missing = [
        f"{table}.{column}"
        for table, columns in wanted.items()
        for column in columns
        if column not in there.get(table, set())
    ]
    if missing:
        return Finding(
            "tables", "failed", f"missing: {', '.join(missing[:10])}",
            "start `tidemill sink` (or `tidemill dev`), which makes them",
        )
    return Finding("tables", "ok", ", ".join(wanted))


def clock(settings: CommonSettings) -> Finding:
    before = time.time()
    rows = query_rows(settings.clickhouse, "SELECT toUnixTimestamp64Milli(now64(3)) AS now_ms")
    after = time.time()
    skew = int(rows[0]["now_ms"]) / 1000 - (before + after) / 2
    found = f"{skew:+.2f} s against ClickHouse"
    if abs(skew) > SKEW_SECONDS_MAX:
        return Finding("clock", "failed", found, "synchronise the clocks (NTP)")
    return Finding("clock", "ok", found)


def cancels(settings: CommonSettings) -> Finding:
    """Kept cancels that went before their day was over, because there were too many."""
    rows = query_rows(
        settings.clickhouse,
        "SELECT sum(events) AS forgotten FROM job_minutes "
        f"WHERE reason = '{Reason.TOO_MANY_CANCELS}' AND minute > now() - INTERVAL 1 DAY",
    )
    forgotten = int(rows[0]["forgotten"])
    if forgotten:
        return Finding(
            "cancels", "warning",
            f"{forgotten} cancels of jobs that nobody had asked for were forgotten within a day, "
            "because too many were kept",
            "find who sends them: SELECT user_id, count() FROM job_events WHERE event = "
            f"'{EventKind.CANCEL_KEPT}' GROUP BY user_id ORDER BY 2 DESC",
        )
    return Finding("cancels", "ok", "none forgotten early")


CHECKS: Final = (
    Check("clickhouse", reachable),
    Check("tables", tables, needs="clickhouse"),
    Check("clock", clock, needs="clickhouse"),
    Check("cancels", cancels, needs="clickhouse"),
)
