"""`doctor` on what ClickHouse has kept: refused records, forgotten cancels, gaps, clock, tables."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tidemill.agents.settings import CommonSettings
from tidemill.doctor import CHECKS, clickhouse
from tidemill.schemas.rows import JOB_EVENTS, JOB_MINUTES, JOBS, LOG_GAPS, REFUSED_REQUESTS
from tidemill.sql import SqlError

Rows = list[dict[str, Any]]
SETTINGS = CommonSettings()


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    """What ClickHouse answers."""
    answer: Rows = []
    monkeypatch.setattr(clickhouse, "query_rows", lambda *_args, **_named: answer)
    return answer


@pytest.mark.parametrize(
    ("code", "field", "told"),
    [("UNKNOWN_FIELD", "odd", "UNKNOWN_FIELD odd"), ("INVALID_JSON", "", "INVALID_JSON"),
     ("MISSING_FIELD", "\x1b[2Juser_id", "MISSING_FIELD")],
)
def test_refused_records_are_counted_and_the_last_is_named(
    rows: Rows, code: str, field: str, told: str
) -> None:
    rows.append({"records": "12", "code": code, "field": field})
    finding = clickhouse.refused(SETTINGS)
    assert finding.verdict == "warning"
    assert finding.found.startswith("12 records were refused")
    assert told in finding.found
    assert "\x1b" not in finding.found
    assert "dead list --kind refused" in finding.hint


def test_nothing_was_refused(rows: Rows) -> None:
    rows.append({"records": "0", "code": "", "field": ""})
    assert clickhouse.refused(SETTINGS).verdict == "ok"


@pytest.mark.parametrize(("forgotten", "verdict"), [("0", "ok"), ("1", "warning"), (70, "warning")])
def test_cancels_that_were_forgotten_early(rows: Rows, forgotten: object, verdict: str) -> None:
    rows.append({"forgotten": forgotten})
    finding = clickhouse.cancels(SETTINGS)
    assert finding.verdict == verdict
    assert (str(forgotten) in finding.found) == (verdict == "warning")
    assert ("cancel_kept" in finding.hint) == (verdict == "warning")


@pytest.mark.parametrize("reason", ["type_not_run", "no_free_slot"])
def test_jobs_that_come_back_again_and_again(rows: Rows, reason: str) -> None:
    assert clickhouse.hand_backs(SETTINGS).verdict == "ok"
    rows.append({"queue": "q", "type": "t\x1b[2J", "reason": reason, "jobs": "3", "most": "41"})
    finding = clickhouse.hand_backs(SETTINGS)
    assert finding.verdict == "warning"
    assert f"3 of t\ufffd[2J in q with {reason}, one of them 41 times" in finding.found


@pytest.mark.parametrize(("is_new", "verdict"), [(1, "failed"), (0, "warning")])
def test_gaps_of_the_log(rows: Rows, is_new: int, verdict: str) -> None:
    rows += [
        {"topic": "jobs.events", "kafka_partition": 3, "first_offset": 10 * n,
         "last_offset": 10 * n + 4, "is_new": is_new}
        for n in range(1, 9)
    ]
    finding = clickhouse.gaps(SETTINGS)
    assert finding.verdict == verdict
    assert "8 gaps" in finding.found
    assert "offsets 10 to 14" in finding.found
    assert "offsets 80" not in finding.found  # a few are enough


def test_no_gap(rows: Rows) -> None:
    assert not rows
    assert clickhouse.gaps(SETTINGS).verdict == "ok"


@pytest.mark.parametrize(
    ("skew", "verdict"), [(0, "ok"), (3, "ok"), (60, "failed"), (-60, "failed")]
)
def test_a_clock_that_is_wrong(rows: Rows, skew: int, verdict: str) -> None:
    rows.append({"now_ms": str(int((time.time() + skew) * 1000))})
    assert clickhouse.clock(SETTINGS).verdict == verdict


@pytest.mark.parametrize(
    ("ahead_ms", "verdict"),
    [("-1795950364378", "ok"), ("0", "ok"), ("4900", "ok"), ("3600000", "warning")],
)
def test_a_ledgers_clock_that_was_set_back(rows: Rows, ahead_ms: str, verdict: str) -> None:
    rows.append({"ahead_ms": ahead_ms})
    finding = clickhouse.ledger_clock(SETTINGS)
    assert finding.verdict == verdict
    assert ("3,600 s ahead" in finding.found) == (verdict == "warning")
    assert ("next 120 min" in finding.hint) == (verdict == "warning")


@pytest.mark.parametrize("missing", ["", "refused_requests", "job_events.error_trace"])
def test_tables_and_columns_that_are_not_there(rows: Rows, missing: str) -> None:
    tables: dict[str, Any] = {
        "job_events": JOB_EVENTS, "jobs": JOBS, "job_minutes": JOB_MINUTES,
        "refused_requests": REFUSED_REQUESTS, "log_gaps": LOG_GAPS,
    }
    rows += [
        {"table": table, "columns": [c for c in columns if f"{table}.{c}" != missing]}
        for table, columns in tables.items() if table != missing
    ]
    finding = clickhouse.tables(SETTINGS)
    assert finding.verdict == ("failed" if missing else "ok")
    assert missing in finding.found


def test_a_clickhouse_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_args: object, **_named: object) -> Rows:
        raise SqlError("connection refused", is_reachable=False)

    monkeypatch.setattr(clickhouse, "query_rows", away)
    assert clickhouse.reachable(SETTINGS).verdict == "failed"


def test_doctor_asks() -> None:
    assert set(clickhouse.CHECKS) <= set(CHECKS)


@pytest.mark.parametrize(
    ("left_out", "counts", "told"),
    [
        ({}, (0, 0, 0), ""), ({}, (9, 5, 3), ""),
        ({"table": "jobs_latest", "parts": "2"}, (9, 5, 3), "2 damaged parts of jobs_latest"),
        ({}, (0, 5, 3), "job_events is empty"), ({}, (0, 0, 3), "job_events is empty"),
        ({}, (9, 0, 3), "job_minutes is empty"), ({}, (9, 5, 0), "jobs_latest is empty"),
    ],
)
def test_a_store_that_has_lost_rows(
    monkeypatch: pytest.MonkeyPatch, left_out: dict[str, str], counts: tuple[int, ...], told: str
) -> None:
    def answer(_url: str, sql: str) -> Rows:
        if "detached_parts" in sql:
            return [left_out] if left_out else []
        if "LIMIT 1" in sql:
            return [{"1": 1}]
        return [dict(zip(("events", "minutes", "jobs"), counts, strict=True))]

    monkeypatch.setattr(clickhouse, "query_rows", answer)
    finding = clickhouse.store(SETTINGS)
    assert finding.verdict == ("failed" if told else "ok")
    assert told in finding.found
    assert ("move clickhouse/" in finding.hint) is bool(told)
