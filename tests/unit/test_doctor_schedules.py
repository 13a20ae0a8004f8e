"""`doctor` names schedules that do not do what somebody expects of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.test_schedule_page import HOUR, record
from tidemill import doctor
from tidemill.agents.answers import AnswerError
from tidemill.agents.settings import CommonSettings
from tidemill.doctor import CHECKS, Check, Finding, examine, schedules
from tidemill.schemas.schedules import ScheduleRecord, ScheduleSpec
from tidemill.streams.occurrences.due import occurrence_id

Told = Callable[..., None]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What Kafka and ClickHouse say."""

    def tell(
        *records: ScheduleRecord, rows: list[dict[str, Any]] | None = None,
        types: frozenset[str] | None = frozenset({"t"}),
    ) -> None:
        found = {one.name: one for one in records}
        monkeypatch.setattr(schedules, "_records", lambda _: found)
        monkeypatch.setattr(schedules, "types_alive", lambda _: types)
        monkeypatch.setattr(schedules, "query_rows", lambda *_, **__: rows or [])

    return tell


def found(check: Callable[[CommonSettings], Finding]) -> tuple[str, str]:
    finding = check(CommonSettings())
    assert finding.verdict in ("ok", "unknown") or finding.hint
    return finding.verdict, finding.found


def test_all_is_well(told: Told) -> None:
    told(record(), record("y", is_paused=True))
    assert found(schedules.known) == ("ok", "2, 1 of them paused")
    told()
    assert {check.run(CommonSettings()).verdict for check in schedules.CHECKS} == {"ok"}
    assert set(schedules.CHECKS) <= set(CHECKS)


def test_orphaned_ones_and_those_without_a_plan_are_named(told: Told) -> None:
    told(record("gone", is_orphaned=True), record())
    verdict, said = found(schedules.known)
    assert verdict == "warning"
    assert "'gone'" in said
    told(record("broken", problem="zone='Mars' is not known"), record("gone", is_orphaned=True))
    verdict, said = found(schedules.known)
    assert verdict == "failed"
    assert "Mars" in said


def test_types_that_no_worker_has_are_named(told: Told) -> None:
    without = record("lonely", spec=ScheduleSpec(type="mail.send", every_ms=HOUR))
    told(record(), without, record("still", is_paused=True, spec=without.spec))
    verdict, said = found(schedules.runnable)
    assert verdict == "failed"
    assert "'lonely'" in said
    assert "mail.send" in said
    assert "still" not in said
    told(record(), types=None)
    assert found(schedules.runnable)[0] == "unknown"


def test_a_schedule_whose_last_tick_has_no_job_is_late(told: Told) -> None:
    now_ms = int(time.time() * 1000)
    created = now_ms - 3 * HOUR - schedules.LATE_MS - 60_000
    late = record("late", created_at=created, changed_at=created)
    last, before = created + 3 * HOUR, created + 2 * HOUR
    told(late, rows=[{"schedule": "late", "last_job_id": occurrence_id("late", last)}])
    assert found(schedules.on_time)[0] == "ok"
    told(late, rows=[{"schedule": "late", "last_job_id": occurrence_id("late", before)}])
    verdict, said = found(schedules.on_time)
    assert verdict == "failed"
    assert "'late'" in said
    told(late)
    assert found(schedules.on_time)[0] == "failed"
    told(record("late", created_at=created, changed_at=created, is_paused=True))
    assert found(schedules.on_time)[0] == "ok"
    # One that was due a moment ago is still on its way.
    told(record("late", created_at=now_ms - HOUR - 1_000, changed_at=now_ms - HOUR - 1_000))
    assert found(schedules.on_time)[0] == "ok"


def test_failures_of_the_last_runs_are_named(told: Told) -> None:
    row = {
        "schedule": "x", "runs": 10, "failed": 3, "last_error_code": "TIMEOUT",
        "last_failed_job_id": "x@1", "is_last_failed": 1,
    }
    told(record(), rows=[row])
    verdict, said = found(schedules.failures)
    assert (verdict, said) == ("warning", "of the last ten runs failed: x: 3 of 10 (TIMEOUT)")


def test_what_cannot_be_read_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: CommonSettings) -> Finding:
        return Finding("clickhouse", "failed", "away")

    def unread(_: CommonSettings) -> Any:
        raise AnswerError("topic jobs.schedules does not exist: run `tidemill topics apply`")

    monkeypatch.setattr(schedules, "_records", unread)
    monkeypatch.setattr(
        doctor, "CHECKS", (Check("clickhouse", away), *schedules.CHECKS)
    )
    _, first, second, third, fourth = examine(CommonSettings())
    assert (first.verdict, second.verdict) == ("failed", "failed")
    assert "topics apply" in first.found
    assert (third.verdict, fourth.verdict) == ("unknown", "unknown")
    assert "last tick" in third.found
