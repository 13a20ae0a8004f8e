"""Schedules that do not do what somebody expects of them.

Owns the checks of what the ledger has told of schedules, beside what workers and ClickHouse say.
Refuses to reckon instants by itself: that is `tidemill.agents.schedule_log`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tidemill.agents.queries import load
from tidemill.agents.schedule_log import ScheduleLog, latest_of, state_of
from tidemill.agents.settings import CommonSettings
from tidemill.doctor.finding import ANSWER_SECONDS, Check, Finding
from tidemill.doctor.workers import types_alive
from tidemill.schemas.instants import instant_text
from tidemill.schemas.safe_text import safe_text
from tidemill.schemas.schedules import ScheduleRecord
from tidemill.schemas.topics import Topics
from tidemill.sql import query_rows

# ms after an instant until its job must have been asked for: a ledger that takes over needs some
# 20 s, and the rows of ClickHouse come a second later.
LATE_MS: Final = 120_000
DUE_DAYS: Final = 7  # instants before that are nobody's concern any more, as their rows may be gone
DAY_MS: Final = 86_400_000
FAILURES_DAYS: Final = 7  # how far back the last ten runs of a schedule are looked for
NAMED_MAX: Final = 5  # schedules that a finding names
ROWS_MAX: Final = 100_000  # schedules that are looked at


def known(settings: CommonSettings) -> Finding:
    """How many there are, and those that the code has left or whose plan cannot be reckoned."""
    check = "schedules"
    records = _records(settings)
    states = {name: state_of(record) for name, record in records.items()}
    orphaned = [name for name, state in states.items() if state == "orphaned"]
    broken = [name for name, state in states.items() if state == "problem"]
    paused = sum(state == "paused" for state in states.values())
    if broken:
        first = records[min(broken)]
        return Finding(
            check, "failed", f"no ticks: {_named(broken)}; {first.name}: {first.problem}",
            "mend the plan: in the code, or with `tidemill schedules set`",
        )
    if orphaned:
        return Finding(
            check, "warning", f"orphaned, no worker's code has them any more: {_named(orphaned)}",
            "`tidemill schedules remove NAME`, or start a worker whose modules have them",
        )
    found = f"{len(records)}" + (f", {paused} of them paused" if paused else "")
    return Finding(check, "ok", found)


def runnable(settings: CommonSettings) -> Finding:
    """Schedules of a type that no living worker runs."""
    check = "schedules' types"
    records = _ticking(_records(settings))
    types = types_alive(settings)
    if types is None:
        return Finding(check, "unknown", "no worker is alive")
    without = [name for name, record in records.items() if record.spec.type not in types]
    if not without:
        return Finding(check, "ok", "a living worker runs the type of each")
    wanted = sorted({records[name].spec.type for name in without})
    return Finding(
        check, "failed", f"no living worker runs the type of {_named(without)}: "
        f"{', '.join(wanted[:NAMED_MAX])}",
        "start a worker with that type, or `tidemill schedules set NAME --type`; after 30 s such "
        "a tick fails as UNKNOWN_TYPE",
    )


def on_time(settings: CommonSettings) -> Finding:
    """Schedules whose last instant has no job although it is past for long."""
    check = "schedules on time"
    records = _ticking(_records(settings))
    if not records:
        return Finding(check, "ok", "none has ticks")
    now_ms = int(time.time() * 1000)
    oldest_ms = now_ms - DUE_DAYS * DAY_MS
    due = {
        name: at for name, record in records.items()
        if (at := latest_of(record, now_ms - LATE_MS)) is not None and at > oldest_ms
    }
    rows = _rows(settings, "schedule_ticks", min(due.values(), default=now_ms))
    asked = {row["schedule"]: _instant_ms(row["last_job_id"]) for row in rows}
    late = [name for name, at in due.items() if asked.get(name, 0) < at]
    if not late:
        return Finding(check, "ok", f"each of {len(records)} had its last tick")
    worst = min(late, key=lambda name: due[name])
    return Finding(
        check, "failed", f"due, and no job asked for: {_named(late)}; {worst} since "
        f"{instant_text(due[worst])}",
        "see the ledger's checks above and its log: ticks are asked for by the ledger of the "
        "schedule's partition; where the sink is behind, its rows come later",
    )


def failures(settings: CommonSettings) -> Finding:
    """Schedules of whose last ten runs some have failed."""
    check = "schedules' runs"
    since = datetime.now(UTC) - timedelta(days=FAILURES_DAYS)
    rows = _rows(settings, "schedule_failures", int(since.timestamp() * 1000))
    if not rows:
        return Finding(check, "ok", "no failure in the last ten runs of any")
    told = [
        f"{safe_text(row['schedule'])}: {row['failed']} of {row['runs']} "
        f"({safe_text(row['last_error_code'])})"
        for row in rows[:NAMED_MAX]
    ]
    rest = len(rows) - NAMED_MAX
    more = f" and {rest} more" if rest > 0 else ""
    is_failing = any(int(row["is_last_failed"]) for row in rows)
    return Finding(
        check, "warning", f"of the last ten runs failed: {'; '.join(told)}{more}",
        f"look at one: tidemill jobs show '{rows[0]['last_failed_job_id']}'" if is_failing else
        "the last run of each was well again",
    )


def _records(settings: CommonSettings) -> dict[str, ScheduleRecord]:
    with ScheduleLog(settings.kafka, Topics(settings.topic_prefix)) as log:
        return log.records


def _ticking(records: Mapping[str, ScheduleRecord]) -> dict[str, ScheduleRecord]:
    return {name: one for name, one in records.items() if state_of(one) in ("code", "live")}


def _rows(settings: CommonSettings, query: str, since_ms: int) -> list[dict[str, Any]]:
    since = datetime.fromtimestamp(since_ms / 1000, UTC)
    return query_rows(
        settings.clickhouse, load(query).sql,
        {"limit": str(ROWS_MAX), "since": since.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]},
        timeout_seconds=ANSWER_SECONDS,
    )


def _instant_ms(job_id: str) -> int:
    try:
        instant = datetime.fromisoformat(job_id.rpartition("@")[2])
    except ValueError:
        return 0  # a job that a stranger asked for as this user
    return round(instant.timestamp() * 1000)


def _named(names: Iterable[str]) -> str:
    ordered = sorted(names)
    shown = ", ".join(repr(safe_text(name)) for name in ordered[:NAMED_MAX])
    rest = len(ordered) - NAMED_MAX
    return shown if rest <= 0 else f"{shown} and {rest} more"


CHECKS: Final = (
    Check("schedules", known, needs="kafka"),
    Check("schedules' types", runnable, needs="kafka"),
    Check(
        "schedules on time", on_time, needs=("clickhouse", "kafka"),
        asks="whether each schedule had its last tick",
    ),
    Check(
        "schedules' runs", failures, needs="clickhouse",
        asks="whether the last runs of schedules failed",
    ),
)
