"""ClickHouse: whether it answers, has the tables, and goes by our clock.

Owns the checks that ask ClickHouse. Refuses to make a table.
"""

from __future__ import annotations

import time
from typing import Final

from tidemill.agents.clickhouse.soundness import losses
from tidemill.agents.settings import CommonSettings
from tidemill.doctor.finding import ANSWER_SECONDS, Check, Finding
from tidemill.schemas.rows import JOB_EVENTS, JOB_MINUTES, JOBS, LOG_GAPS, REFUSED_REQUESTS
from tidemill.schemas.safe_text import safe_line
from tidemill.schemas.words import EventKind, Reason
from tidemill.sql import SqlError, query_rows

GAP_DAYS: Final = 30  # a gap cannot be filled: later it only explains old numbers
GAPS_SHOWN: Final = 5
REFUSED_HOURS: Final = 24  # what was refused before is no news
HAND_BACK_MINUTES: Final = 15  # what happened before may be over
# In one run of a job. A queue that is full for long gives some, so many are nobody's plan.
HAND_BACKS_MAX: Final = 20
HAND_BACKS_SHOWN: Final = 5
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
    wanted = {
        "job_events": JOB_EVENTS, "jobs": JOBS, "job_minutes": JOB_MINUTES,
        "refused_requests": REFUSED_REQUESTS, "log_gaps": LOG_GAPS,
    }
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


def ledger_clock(settings: CommonSettings) -> Finding:
    """Events of an instant that is still to come: a ledger's clock was ahead and was set back."""
    rows = query_rows(
        settings.clickhouse,
        "SELECT max(toUnixTimestamp64Milli(occurred_at)) - toUnixTimestamp64Milli(now64(3)) AS "
        "ahead_ms FROM job_events WHERE occurred_at > now64(3)",
    )
    ahead = int(rows[0]["ahead_ms"]) / 1000
    if ahead <= SKEW_SECONDS_MAX:
        return Finding("ledger clock", "ok", "no event is ahead of now")
    return Finding(
        "ledger clock", "warning",
        f"the last event is {ahead:,.0f} s ahead of now: a ledger's clock was ahead and was set "
        "back; its time goes on at half of the speed until both agree",
        "synchronise the clocks of the ledgers' machines (NTP); waits may take twice as long for "
        f"the next {max(1, round(2 * ahead / 60)):,} min",
    )


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


def refused(settings: CommonSettings) -> Finding:
    rows = query_rows(
        settings.clickhouse,
        "SELECT count() AS records, argMax(code, refused_at) AS code,"
        " argMax(field, refused_at) AS field FROM refused_requests"
        f" WHERE refused_at > now() - INTERVAL {REFUSED_HOURS} HOUR",
    )
    records = int(rows[0]["records"])
    if not records:
        return Finding("refused", "ok", f"no record was refused within {REFUSED_HOURS} h")
    last = " ".join(safe_line(rows[0][name]) for name in ("code", "field")).strip()
    return Finding(
        "refused", "warning",
        f"{records} records were refused within {REFUSED_HOURS} h, the last one with {last}",
        "`tidemill dead list --kind refused` names each and its way out",
    )


def hand_backs(settings: CommonSettings) -> Finding:
    """Jobs that go to and fro between ledger and workers, and run nowhere."""
    rows = query_rows(
        settings.clickhouse,
        "SELECT queue, type, reason, uniqExact(user_id, job_id) AS jobs,"
        " max(JSONExtractUInt(data, 'returns')) AS most FROM job_events"
        f" WHERE event = '{EventKind.RETURNED}'"
        f" AND occurred_at > now() - INTERVAL {HAND_BACK_MINUTES} MINUTE"
        f" GROUP BY queue, type, reason HAVING most >= {HAND_BACKS_MAX}"
        f" ORDER BY most DESC, queue, type, reason LIMIT {HAND_BACKS_SHOWN}",
    )
    if not rows:
        return Finding("hand-backs", "ok", "no job is handed back again and again")
    told = "; ".join(
        f"{row['jobs']} of {safe_line(row['type'])} in {safe_line(row['queue'])} with "
        f"{safe_line(row['reason'])}, one of them {row['most']} times in a run"
        for row in rows
    )
    return Finding(
        "hand-backs", "warning", f"jobs come back unrun: {told}",
        f"{Reason.TYPE_NOT_RUN}: restart the workers of that queue, which tell of a type that they "
        "do not run; other reasons: add slots or workers. Nothing is lost, and `tidemill jobs "
        "cancel` ends a job that is not wanted any more",
    )


def gaps(settings: CommonSettings) -> Finding:
    rows = query_rows(
        settings.clickhouse,
        "SELECT topic, kafka_partition, first_offset, last_offset,"
        f" noticed_at > now() - INTERVAL {GAP_DAYS} DAY AS is_new"
        " FROM log_gaps FINAL ORDER BY is_new DESC, noticed_at DESC",
    )
    if not rows:
        return Finding("gaps", "ok", "every offset of the log was read")
    told = "; ".join(
        f"{safe_line(row['topic'])} partition {row['kafka_partition']}, offsets "
        f"{row['first_offset']} to {row['last_offset']}"
        for row in rows[:GAPS_SHOWN]
    )
    return Finding(
        "gaps", "failed" if rows[0]["is_new"] else "warning",
        f"{len(rows)} gaps, whose rows are missing in ClickHouse: {told}",
        "records were deleted before the sink read them: lengthen retention.ms of the topic, keep "
        f"the sink running; a gap counts as failed for {GAP_DAYS} days",
    )


def store(settings: CommonSettings) -> Finding:
    """Whether the store has lost rows, which ClickHouse does not say."""
    lost = losses(lambda sql: query_rows(settings.clickhouse, sql))
    if not lost:
        return Finding("store", "ok", "no table has lost a part")
    return Finding(
        "store", "failed", f"rows are missing: {safe_line('; '.join(lost))}",
        "no job needs them: stop `tidemill dev` (or the sinks) and move clickhouse/ of the data "
        "folder away (of a server: drop the database or put back a backup); the next start makes "
        "the rows again as far as the log reaches back",
    )


CHECKS: Final = (
    Check("clickhouse", reachable),
    Check("tables", tables, needs="clickhouse"),
    Check("store", store, needs="clickhouse"),
    Check("gaps", gaps, needs="clickhouse"),
    Check("refused", refused, needs="clickhouse"),
    Check("hand-backs", hand_backs, needs="clickhouse"),
    Check("clock", clock, needs="clickhouse"),
    Check("ledger clock", ledger_clock, needs="clickhouse"),
    Check("cancels", cancels, needs="clickhouse"),
)
