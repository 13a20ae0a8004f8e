"""`doctor` names queues that no worker serves and types that none of their workers runs."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill import doctor
from tidemill.agents.settings import CommonSettings
from tidemill.doctor import CHECKS, Check, Finding, examine, waiting


def group(queue: str, type: str, reason: str, jobs: int = 3) -> dict[str, Any]:
    return {"queue": queue, "type": type, "reason": reason, "jobs": jobs}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ClickHouse answers."""
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(waiting, "query_rows", lambda *_args, **_named: rows)
    return rows


def test_nothing_waits_in_vain(told: list[dict[str, Any]]) -> None:
    assert not told
    assert {check.run(CommonSettings()).verdict for check in waiting.CHECKS} == {"ok"}


def test_a_queue_without_workers(told: list[dict[str, Any]]) -> None:
    told += [group("mail", "mail.send", "queue_not_served"), group("q", "t", "type_not_run")]
    finding = waiting.queues(CommonSettings())
    assert finding.verdict == "failed"
    assert "'mail'" in finding.found
    assert "'q'" not in finding.found


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (group("q", "gone", "type_not_run"), "'gone in q'"),
        (group("", "greeet", "unknown_type"), "'greeet'"),
        (group("", "\x1b[31mred", "unknown_type"), "red"),
    ],
)
def test_a_type_that_nobody_runs(
    told: list[dict[str, Any]], row: dict[str, Any], named: str
) -> None:
    told.append(row)
    finding = waiting.types(CommonSettings())
    assert finding.verdict == "failed"
    assert named in finding.found
    assert "\x1b" not in finding.found
    assert finding.hint


def test_many_are_not_all_named(told: list[dict[str, Any]]) -> None:
    told += [group(f"q{number}", "t", "queue_not_served") for number in range(50)]
    assert waiting.queues(CommonSettings()).found.endswith("and 45 more; their jobs wait")


def test_doctor_asks() -> None:
    assert set(waiting.CHECKS) <= set(CHECKS)


def test_without_clickhouse_it_says_what_it_could_not_look_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(_: CommonSettings) -> Finding:
        return Finding("clickhouse", "failed", "no answer")

    monkeypatch.setattr(doctor, "CHECKS", (Check("clickhouse", away), *waiting.CHECKS))
    _, *found = examine(CommonSettings())
    assert [one.check for one in found] == ["queues", "types"]
    for one in found:
        assert one.verdict == "unknown"
        assert one.found.startswith("not checked without ClickHouse: whether jobs wait")
