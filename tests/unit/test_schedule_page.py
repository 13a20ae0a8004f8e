"""What the page, the command line and a program say of schedules, without Kafka."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.unit.core_kit import NOW
from tidemill.agents.answers import AnswerError, AnswerTimeout
from tidemill.agents.api import schedule_follower
from tidemill.agents.api.schedule_follower import ScheduleFollower
from tidemill.agents.api.schedule_page import matching, rows_of
from tidemill.agents.schedule_log import latest_of, merged, period_of, state_of
from tidemill.client_schedules import _given, _spec
from tidemill.requests import InvalidRequest
from tidemill.schemas.schedules import ScheduleCommand, ScheduleRecord, ScheduleSpec
from tidemill.schemas.topics import Topics

HOUR = 3_600_000


def record(name: str = "x", **facts: Any) -> ScheduleRecord:
    known: dict[str, Any] = {
        "schema_version": 1, "name": name, "spec": ScheduleSpec(type="t", every_ms=HOUR),
        "origin": "code", "created_at": NOW, "next_at": NOW + HOUR, "revision": 1,
        "changed_at": NOW, "change": "created",
    }
    return ScheduleRecord(**known | facts)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, "code"), ({"origin": "live"}, "live"), ({"is_paused": True}, "paused"),
        ({"is_orphaned": True}, "orphaned"), ({"is_orphaned": True, "origin": "live"}, "live"),
        ({"problem": "no zone"}, "problem"),
    ],
)
def test_the_state_of_a_schedule(facts: dict[str, Any], said: str) -> None:
    assert state_of(record(**facts)) == said


@pytest.mark.parametrize(
    ("period_ms", "said"),
    [(1_500, "1.5s"), (60_000, "1min"), (5_400_000, "1h30min"), (90_000, "1min30s"),
     (86_400_000, "1d")],
)
def test_a_period_is_said_as_it_is_written(period_ms: int, said: str) -> None:
    assert period_of(period_ms) == said


def test_a_job_is_owed_for_instants_since_the_last_change() -> None:
    assert latest_of(record(), NOW + HOUR - 1) is None
    assert latest_of(record(), NOW + 5 * HOUR + 7) == NOW + 5 * HOUR
    changed = record(changed_at=NOW + 5 * HOUR + 1, change="resumed")
    assert latest_of(changed, NOW + 5 * HOUR + 7) is None
    assert latest_of(changed, NOW + 6 * HOUR) == NOW + 6 * HOUR


def test_rows_are_found_by_name_and_type_state_and_place() -> None:
    records = [record("b.two"), record("a.one", is_paused=True), record("c.Three")]
    assert [one.name for one in matching(records, "", "", "")] == ["a.one", "b.two", "c.Three"]
    assert [one.name for one in matching(records, "three", "", "")] == ["c.Three"]
    assert [one.name for one in matching(records, "", "paused", "")] == ["a.one"]
    assert [one.name for one in matching(records, "", "", "b.two")] == ["c.Three"]


def test_a_row_says_rule_next_and_last() -> None:
    last = {"x": {"job_id": "j", "status": "failed"}}
    (row,) = rows_of([record()], last, NOW + 90_000)
    assert (row.rule, row.word, row.tone) == ("every 1h", "on", "good")
    assert row.last == last["x"]
    assert row.next_at is not None
    (paused,) = rows_of([record(is_paused=True, next_at=None)], {}, NOW)
    assert (paused.next_at, paused.last, paused.word) == (None, None, "paused")


def test_what_is_not_given_stays() -> None:
    known = record(spec=ScheduleSpec(type="t", cron="0 9 * * *", zone="Europe/Berlin", gap="skip"))
    after = _spec(merged(known, _given({"fold": "both"})))
    assert (after.cron, after.zone, after.gap, after.fold) == (
        "0 9 * * *", "Europe/Berlin", "skip", "both"
    )
    every = _spec(merged(known, _given({"every": timedelta(minutes=5)})))
    assert (every.cron, every.every_ms, every.zone) == (None, 300_000, "UTC")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"every": "1h", "cron": "* * * * *", "type": "t"}, "every, cron"),
        ({"every": "soon", "type": "t"}, "every='soon'"), ({"every": "1h"}, "type"),
        ({"every": "1ms", "type": "t"}, "every"), ({"every": "1h", "type": "t", "gap": "j"}, "gap"),
        ({"cron": "61 * * * *", "type": "t"}, "cron"), ({"type": "t"}, "every"),
        ({"cron": "* * * * *", "zone": "Mars", "type": "t"}, "zone"),
        ({"every": "1h", "type": "t", "colour": "red"}, "colour"),
    ],
)
def test_a_wrong_setting_is_named(settings: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        _spec(merged(None, _given(settings)))


# --- the reader of the API ---


class FakeLog:
    """In place of `ScheduleLog`: what it finds is put into `coming`."""

    coming: list[tuple[str, ScheduleRecord | None]]
    problem = ""

    def __init__(self, kafka: str, topics: Topics) -> None:
        self.records = {"x": record()}

    def __enter__(self) -> FakeLog:
        if FakeLog.problem:
            raise AnswerError(FakeLog.problem)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def take(self) -> tuple[bool, list[tuple[str, ScheduleRecord | None]]]:
        found, FakeLog.coming = FakeLog.coming, []
        return True, found


def command(word: Any) -> ScheduleCommand:
    return ScheduleCommand(command="schedule", word=word, name="x", command_id="c1")


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Callable[[ScheduleRecord | None], ScheduleFollower]:
    """A follower whose next command brings that record."""
    FakeLog.coming, FakeLog.problem = [], ""
    monkeypatch.setattr(schedule_follower, "ScheduleLog", FakeLog)

    def made(answer: ScheduleRecord | None) -> ScheduleFollower:
        def send(*_: object) -> None:
            FakeLog.coming = [("x", answer)]

        monkeypatch.setattr(schedule_follower, "send", send)
        return ScheduleFollower("", Topics())

    return made


def test_an_answer_is_known_when_it_is_given(
    follow: Callable[[ScheduleRecord | None], ScheduleFollower]
) -> None:
    answered = record(is_paused=True, command_id="c1")
    follower = follow(answered)
    assert list(follower.records()) == ["x"]
    assert follower.ask(command("pause")) is answered
    assert follower.record("x") is answered
    follower.close()


def test_a_schedule_that_is_removed_is_gone(
    follow: Callable[[ScheduleRecord | None], ScheduleFollower]
) -> None:
    follower = follow(None)
    assert follower.ask(command("remove")) is None
    assert follower.records() == {}
    follower.close()


def test_why_nothing_can_be_read_is_told_and_tried_again(
    follow: Callable[[ScheduleRecord | None], ScheduleFollower], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule_follower, "RETRY_SECONDS", 0.01)
    follower = follow(None)
    FakeLog.problem = "no topic; run `tidemill topics apply`"
    with pytest.raises(AnswerError, match="topics apply"):
        follower.records()
    FakeLog.problem = ""
    while True:
        try:
            assert list(follower.records()) == ["x"]
            break
        except AnswerError:
            continue  # of the try before
    follower.close()


def test_an_answer_that_does_not_come_is_an_error(
    follow: Callable[[ScheduleRecord | None], ScheduleFollower], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule_follower, "ANSWER_SECONDS", 0.05)
    follower = follow(record(command_id="another"))
    with pytest.raises(AnswerTimeout, match="does the ledger run"):
        follower.ask(command("pause"))
    follower.close()
