"""Signals, as one partition sees them: in time, early, late, twice, and against every clock."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.unit.core_kit import NOW
from tests.unit.partition_kit import (
    TOPICS,
    Input,
    Scene,
    events_in,
    events_of,
    outcome,
    outcomes,
    plain,
    request,
)
from tidemill.schemas.requests import MEMORY_BYTES_MAX, SIGNAL_BYTES_MAX, STEP_BYTES_MAX
from tidemill.schemas.words import State
from tidemill.streams.store import kept_signals

KEY = ("u", "j")
DAY_MS = 86_400_000
LONG_MS = 5_000


def told(kind: str, epoch: int = 1, **facts: Any) -> Input:
    return outcomes(outcome(KEY, kind, **{"epoch": epoch, **facts}))


def waits(epoch: int = 1, name: str = "go", timeout_ms: int | None = LONG_MS) -> Input:
    what = {"kind": "signal", "name": name, "timeout_ms": timeout_ms}
    return told("suspended", epoch, waits=what)


def signal(value: Any = True, name: str = "go", job_id: str = "j", **more: Any) -> Input:
    body = {
        "command": "signal", "user_id": "u", "job_id": job_id, "name": name, "value": value, **more
    }
    return TOPICS.commands, orjson.dumps(body)


def sent(records: Any) -> list[dict[str, Any]]:
    packs = [orjson.loads(v or b"") for t, _, _, v, _ in records if t.startswith("jobs.ready")]
    return [job for pack in packs for job in pack["jobs"]]


def begun() -> Scene:
    scene = Scene(plain())
    assert len(sent(scene.group(NOW, request("j")))) == 1
    return scene


def waiting(timeout_ms: int | None = LONG_MS) -> Scene:
    scene = begun()
    scene.group(NOW + 10, told("started"), waits(timeout_ms=timeout_ms))
    assert scene.state.jobs[KEY].state is State.AWAITING
    return scene


def kept_rows(scene: Scene) -> list[bytes]:
    return [key for key in scene.rows if key[:1] == b"e"]


def reasons(records: Any) -> list[tuple[str, str | None]]:
    return [(event["event"], event["reason"]) for event in events_in(records)]


def test_a_signal_wakes_the_handler_with_its_value() -> None:
    scene = waiting()
    assert scene.in_flight() == []
    records = scene.group(NOW + 20, signal({"ok": True}, actor="ada"))
    resumed, _ = events_in(records)
    assert (resumed["event"], resumed["reason"]) == ("resumed", "signal_came")
    assert resumed["data"] == {
        "name": "go", "kind": "signal", "value": {"ok": True}, "actor": "ada"
    }
    assert resumed["cause"]["topic"] == TOPICS.commands
    (job,) = sent(records)
    assert (job["attempt"], job["epoch"]) == (1, 2)
    assert job["memory"] == [["go", "signal", {"ok": True}]]
    assert events_of(scene.group(NOW + LONG_MS + 20)) == []  # the timer is of a wait that is over
    scene.group(NOW + LONG_MS + 21, told("succeeded", 2, result=1))
    assert [key for key in scene.rows if key[:1] in b"me"] == []


def test_the_story_says_what_it_waits_for() -> None:
    scene = begun()
    (event,) = events_in(scene.group(NOW + 10, waits()))
    assert (event["event"], event["reason"], event["state_after"]) == (
        "suspended", "signal_awaited", "awaiting"
    )
    assert event["data"] == {"name": "go", "kind": "signal"}
    assert event["due_at"] is not None


def test_without_a_time_out_it_waits_for_ever() -> None:
    scene = begun()
    (event,) = events_in(scene.group(NOW + 10, waits(timeout_ms=None)))
    assert event["due_at"] is None
    year_ms = 400 * DAY_MS
    assert events_of(scene.group(NOW + year_ms)) == []
    scene.restore(NOW + year_ms)
    assert events_of(scene.group(NOW + year_ms + 1, signal())) == ["resumed", "dispatched"]


def test_a_time_out_is_remembered_and_a_late_signal_refused() -> None:
    scene = waiting()
    records = scene.group(NOW + 10 + LONG_MS)
    assert reasons(records)[0] == ("resumed", "timed_out")
    assert sent(records)[0]["memory"] == [["go", "timed_out", None]]
    assert reasons(scene.group(NOW + 11 + LONG_MS, signal())) == [("command_refused", "timed_out")]
    # Asked for again, by a worker that lost its memory: the same answer.
    again = scene.group(NOW + 12 + LONG_MS, waits(2))
    assert reasons(again)[:2] == [("suspended", "signal_awaited"), ("resumed", "timed_out")]
    assert sent(again)[0]["memory"] == [["go", "timed_out", None]]


def test_of_a_signal_and_a_time_out_in_one_group_the_first_decided_wins() -> None:
    scene = waiting()
    records = scene.group(NOW + 10 + LONG_MS, signal(7))
    assert reasons(records)[0] == ("resumed", "signal_came")
    assert sent(records)[0]["memory"] == [["go", "signal", 7]]
    assert "timed_out" not in str(reasons(records))


def test_the_first_signal_of_a_name_counts() -> None:
    scene = waiting()
    records = scene.group(NOW + 20, signal(1), signal(2), signal(1))
    assert reasons(records)[:3] == [
        ("resumed", "signal_came"), *[("command_refused", "already_signalled")] * 2
    ]
    assert sent(records)[0]["memory"] == [["go", "signal", 1]]
    refused = events_in(records)[1]
    assert refused["data"] == {"name": "go", "actor": None}


@pytest.mark.parametrize("is_restored", [False, True])
def test_an_early_signal_is_kept_and_there_at_once(is_restored: bool) -> None:
    scene = begun()
    (kept,) = events_in(scene.group(NOW + 5, signal("early", actor="ada")))
    assert (kept["event"], kept["sequence"], kept["state_after"]) == (
        "signal_kept", None, "dispatched"
    )
    assert kept["data"]["value"] == "early"
    assert len(kept_rows(scene)) == 1
    if is_restored:
        scene.restore(NOW + 6)
    assert reasons(scene.group(NOW + 7, signal("second"))) == [
        ("command_refused", "already_signalled")
    ]
    records = scene.group(NOW + 10, told("started"), waits())
    assert reasons(records)[1:3] == [("suspended", "signal_awaited"), ("resumed", "signal_came")]
    resumed = events_in(records)[2]
    assert resumed["cause"] == kept["cause"]
    assert resumed["data"]["actor"] == "ada"
    assert sent(records)[0]["memory"] == [["go", "signal", "early"]]
    assert kept_rows(scene) == []


def test_a_signal_may_come_before_its_request() -> None:
    scene = Scene(plain())
    (kept,) = events_in(scene.group(NOW, signal(5)))
    assert (kept["event"], kept["state_after"], kept["incarnation"]) == ("signal_kept", None, 0)
    scene.restore(NOW + 1)
    scene.group(NOW + 2, request("j"))
    assert sent(scene.group(NOW + 3, waits()))[0]["memory"] == [["go", "signal", 5]]


def test_a_signal_of_another_name_waits_beside() -> None:
    scene = waiting()
    assert reasons(scene.group(NOW + 20, signal(1, "other"))) == [("signal_kept", None)]
    records = scene.group(NOW + 30, signal(2))
    assert sent(records)[0]["memory"] == [["go", "signal", 2]]
    records = scene.group(NOW + 40, waits(2, "other"))
    assert sent(records)[0]["memory"] == [["go", "signal", 2], ["other", "signal", 1]]


@pytest.mark.parametrize("is_asked_for", [False, True])
def test_nobody_waits_for_a_day_and_the_signal_is_given_up(is_asked_for: bool) -> None:
    scene = begun() if is_asked_for else Scene(plain())
    scene.group(NOW + 5, signal())
    if is_asked_for:
        scene.group(NOW + 6, told("started"), waits(name="else", timeout_ms=None))
    assert reasons(scene.group(NOW + DAY_MS - 10_000)) == []
    reason = "not_awaited" if is_asked_for else "unknown_job"
    given_up = scene.group(NOW + DAY_MS + 10_000)
    assert reasons(given_up) == [("command_refused", reason)]
    assert events_in(given_up)[0]["data"]["name"] == "go"
    assert kept_rows(scene) == []
    # From now on the name is free again.
    assert reasons(scene.group(NOW + DAY_MS + 20_000, signal())) == [("signal_kept", None)]


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_a_job_that_has_ended_takes_none(end: str) -> None:
    scene = begun()
    scene.group(NOW + 5, signal(1, "kept"))
    if end == "cancelled":
        command = {"command": "cancel", "user_id": "u", "job_id": "j"}
        scene.group(NOW + 6, waits(), (TOPICS.commands, orjson.dumps(command)))
    elif end == "failed":
        fatal = {"code": "X", "message": "no", "retryable": False}
        scene.group(NOW + 6, told("failed", error=fatal))
    else:
        scene.group(NOW + 6, told("succeeded", result=1))
    assert reasons(scene.group(NOW + 7, signal())) == [("command_refused", "already_ended")]
    # A dead letter may run again, and then it is there.
    assert len(kept_rows(scene)) == (end == "failed")
    scene.group(NOW + 10_000)
    assert reasons(scene.group(NOW + 10_001, signal())) == [("command_refused", "already_ended")]


def test_a_redrive_keeps_signals_that_came_and_those_that_wait() -> None:
    scene = waiting()
    scene.group(NOW + 20, signal(1), signal(2, "later"))
    fatal = {"code": "X", "message": "no", "retryable": False}
    scene.group(NOW + 30, told("failed", 2, error=fatal))
    command = {"command": "redrive", "user_id": "u", "job_id": "j"}
    (again,) = sent(scene.group(NOW + 40, (TOPICS.commands, orjson.dumps(command))))
    assert again["memory"] == [["go", "signal", 1]]
    (third,) = sent(scene.group(NOW + 50, waits(3, "later")))
    assert third["memory"] == [["go", "signal", 1], ["later", "signal", 2]]


def test_a_cancel_ends_a_waiting_job_and_the_signal_comes_too_late() -> None:
    scene = waiting()
    command = {"command": "cancel", "user_id": "u", "job_id": "j"}
    records = scene.group(NOW + 20, (TOPICS.commands, orjson.dumps(command)), signal())
    assert reasons(records) == [
        ("cancelled", "cancelled_by_command"), ("command_refused", "already_ended")
    ]
    assert events_of(scene.group(NOW + 10 + LONG_MS)) == []


def test_another_job_of_the_same_id_knows_nothing_of_the_former_ones_signals() -> None:
    scene = Scene(plain(), retention_ms=1_000)
    scene.group(NOW, request("j"))
    scene.group(NOW + 5, signal(1, "kept"))
    scene.group(NOW + 6, waits())
    scene.group(NOW + 7, signal(2))
    scene.group(NOW + 8, told("succeeded", 2, result=1))
    scene.group(NOW + 60_000)
    scene.group(NOW + 70_000, request("j"))
    records = scene.group(NOW + 70_010, waits())
    assert events_of(records) == ["suspended"]


def test_a_step_or_a_sleep_has_the_name() -> None:
    scene = begun()
    scene.group(NOW + 1, told("started"), told("stepped", name="go", result=1))
    assert reasons(scene.group(NOW + 2, signal())) == [("command_refused", "name_taken")]


@pytest.mark.parametrize("place", range(3))
def test_a_new_owner_at_any_point_knows_the_same(place: int) -> None:
    """Between any two of: the suspension, the signal, the end."""
    scene = begun()
    inputs = [(NOW + 1, told("started")), (NOW + 3, waits()), (NOW + 4, signal([1, "ü"]))]
    for index, (now_ms, given) in enumerate(inputs):
        scene.group(now_ms, given, is_committed=False)
        if index == place:
            scene.restore(now_ms)
        records = scene.group(now_ms, given)
    assert sent(records)[0]["memory"] == [["go", "signal", [1, "ü"]]]


def test_an_aborted_group_takes_back_a_kept_signal_and_one_that_was_given() -> None:
    scene = begun()
    scene.group(NOW + 1, signal(1), is_committed=False)
    assert not scene.state.signals.values
    assert not scene.state.signals.by_job
    scene.group(NOW + 1, signal(1))
    scene.group(NOW + 2, waits(), is_committed=False)
    assert scene.state.signals.of(KEY, "go") is not None
    assert not scene.state.memory.by_job
    scene.group(NOW + 3, waits())
    assert scene.state.signals.of(KEY, "go") is None


def test_a_hundred_of_a_job_are_kept_and_no_more() -> None:
    scene = begun()
    most = kept_signals.JOB_COUNT_MAX
    scene.group(NOW + 1, *(signal(n, f"s{n}") for n in range(most)))
    assert reasons(scene.group(NOW + 2, signal(0, "more"))) == [
        ("command_refused", "too_many_signals")
    ]
    assert len(kept_rows(scene)) == most
    records = scene.group(NOW + 3, waits(name="s0"), signal(0, "more"))
    assert ("signal_kept", None) in reasons(records)


@pytest.mark.interpreted
def test_a_user_has_a_bound_and_a_partition_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER_BYTES_MAX", "BYTES_MAX"):
        monkeypatch.setattr(kept_signals, name, 1_000)
        scene = Scene(plain())
        scene.group(NOW, signal("x" * 600, job_id="a"))
        assert reasons(scene.group(NOW + 1, signal("x" * 600, job_id="b"))) == [
            ("command_refused", "too_many_signals")
        ]
        monkeypatch.setattr(kept_signals, name, 10**9)
        assert reasons(scene.group(NOW + 2, signal("x" * 600, job_id="b"))) == [
            ("signal_kept", None)
        ]


def test_what_no_memory_could_hold_is_refused_and_the_job_waits_on() -> None:
    scene = begun()
    scene.group(NOW + 1, told("started"))
    fits = "x" * (STEP_BYTES_MAX - 200)
    for number in range(MEMORY_BYTES_MAX // STEP_BYTES_MAX):
        scene.group(NOW + 2, told("stepped", name=f"step {number}", result=fits))
    large = "y" * (SIGNAL_BYTES_MAX - 2)
    scene.group(NOW + 3, waits())
    assert reasons(scene.group(NOW + 4, signal(large))) == [("command_refused", "too_large")]
    assert reasons(scene.group(NOW + 5, signal(1)))[0] == ("resumed", "signal_came")
    scene.group(NOW + 6, signal(large, "next"))
    ended = scene.group(NOW + 7, waits(2, "next"))
    assert reasons(ended)[-1] == ("failed", "not_retryable")
    assert events_in(ended)[-1]["error"]["code"] == "STEP_TOO_LARGE"


def test_a_job_that_was_asked_to_stop_does_not_wait() -> None:
    scene = begun()
    command = {"command": "cancel", "user_id": "u", "job_id": "j"}
    scene.group(NOW + 1, told("started"), (TOPICS.commands, orjson.dumps(command)))
    assert events_of(scene.group(NOW + 2, waits())) == ["suspended", "cancelled"]


@pytest.mark.parametrize(
    "facts",
    [
        {"kind": "signal", "name": "n", "timeout_ms": -1},
        {"kind": "signal", "name": "n", "timeout_ms": "1h"},
        {"kind": "signal", "name": "n", "timeout_ms": True},
        {"kind": "signal", "name": "n", "timeout_ms": 10**15},
        {"kind": "signal", "name": ""}, {"kind": "signal"},
    ],
)
def test_what_no_worker_says_is_a_dead_letter(facts: dict[str, Any]) -> None:
    scene = begun()
    records = scene.group(NOW + 1, told("suspended", waits=facts))
    assert [topic for topic, *_ in records if topic == TOPICS.dead] == [TOPICS.dead]
    assert scene.state.jobs[KEY].state is State.DISPATCHED


def test_a_row_of_a_later_form_is_not_read() -> None:
    scene = begun()
    scene.group(NOW + 1, signal())
    (key,) = kept_rows(scene)
    scene.rows[key] = scene.rows[key].replace(b"[1,", b"[2,", 1)
    with pytest.raises(Exception, match="kept signal's row of version 2"):
        scene.restore(NOW + 2)
