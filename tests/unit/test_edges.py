"""What a stranger asks about the edges: the cases of docs/ARCHITECTURE.md that a partition decides.

Each is told by the whole engine of a partition, records in and records out.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
import pytest

from tests.unit.core_kit import DEFAULT, NOW
from tests.unit.partition_kit import (
    TOPICS,
    Input,
    Scene,
    events_in,
    outcome,
    outcomes,
    plain,
    request,
)
from tidemill.schemas.wire import Definition, LimitSpec
from tidemill.streams.partition import Capacity
from tidemill.streams.store.jobs import DEDUPE_RETENTION_MS

MINUTE: Final = 60_000
KEY: Final = ("u", "j")


def told(records: Any, *, job_id: str | None = "j") -> list[tuple[str, str | None]]:
    """Event and reason of one job, or of all."""
    return [
        (event["event"], event["reason"]) for event in events_in(records)
        if job_id is None or event["job_id"] == job_id
    ]


def command(kind: str, job_id: str = "j", user_id: str = "u") -> Input:
    body = {"command": kind, "user_id": user_id, "job_id": job_id}
    return TOPICS.commands, orjson.dumps(body)


def limited(limit: int) -> Definition:
    return plain(LimitSpec(limit=limit, window_ms=MINUTE, over="delay"))


def test_one_id_with_two_bodies_runs_the_first() -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j", payload={"n": 1}))
    same, other = request("j", payload={"n": 1}), request("j", payload={"n": 2})
    assert told(scene.group(NOW + 1, same)) == [("duplicate_ignored", "same_body")]
    assert told(scene.group(NOW + 2, other)) == [("conflict_ignored", "other_body")]
    scene.group(NOW + 3, outcomes(outcome(KEY, "succeeded")))
    assert told(scene.group(NOW + 4, other)) == [("conflict_ignored", "other_body")]


def test_a_cancel_while_retrying_ends_the_job_at_once() -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j"))
    scene.group(NOW + 1, outcomes(outcome(KEY, "failed", retry_after_ms=MINUTE)))
    found = told(scene.group(NOW + 2, command("cancel")))
    assert found == [("cancelled", "cancelled_by_command")]


def test_a_limit_that_is_lowered_holds_for_those_that_wait_already() -> None:
    scene = Scene(limited(100))
    scene.rooms = {DEFAULT: Capacity(1_000, 1_000, 1, (0, 1))}
    ids = [f"j{number:03}" for number in range(600)]
    out = _dispatched(scene, NOW, *map(request, ids))
    assert out == ids[:100]
    scene.definitions = [limited(10)]
    now_ms = NOW + 1
    for first in range(100, 130, 10):
        ends = [outcome(("u", name), "succeeded") for name in out]
        assert _dispatched(scene, now_ms, outcomes(*ends)) == []
        now_ms += MINUTE
        out = _dispatched(scene, now_ms) + _dispatched(scene, now_ms + 1_500)
        assert out == ids[first : first + 10]
        now_ms += 2_000


def _dispatched(scene: Scene, now_ms: int, *inputs: Input) -> list[str]:
    return [
        event["job_id"] for event in events_in(scene.group(now_ms, *inputs))
        if event["event"] == "dispatched"
    ]


def test_a_redrive_waits_for_nobody_who_holds_its_unique_key() -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j", unique_key="k"))
    scene.group(NOW + 1, outcomes(outcome(KEY, "failed", error={"retryable": False})))
    scene.group(NOW + 2, request("other", unique_key="k"))
    assert told(scene.group(NOW + 3, command("redrive"))) == [("command_refused", "duplicate")]
    scene.group(NOW + 4, outcomes(outcome(("u", "other"), "succeeded")))
    assert told(scene.group(NOW + 5, command("redrive")))[0] == ("redriven", "operator")


def test_one_unique_key_of_two_users_is_two_keys() -> None:
    scene = Scene(plain())
    found = scene.group(
        NOW, request("j", unique_key="k"), request("j", user_id="v", unique_key="k"),
        request("second", unique_key="k"),
    )
    skipped = [
        (event["user_id"], event["job_id"]) for event in events_in(found)
        if event["event"] == "skipped"
    ]
    assert skipped == [("u", "second")]


@pytest.mark.parametrize("away_ms", [0, 5])
def test_what_expires_before_its_run_at_never_runs(away_ms: int) -> None:
    scene = Scene(plain())
    asked = request("j", run_at=NOW + 2 * MINUTE, expires_at=NOW + MINUTE)
    assert told(scene.group(NOW, asked)) == [("requested", None), ("scheduled", "run_at")]
    found = told(scene.group(NOW + MINUTE + away_ms))
    assert found == [("expired", "expired_before_start")]


def test_a_succeeded_job_is_done_again_under_another_id_or_after_a_day() -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j"))
    scene.group(NOW + 1, outcomes(outcome(KEY, "succeeded")))
    assert told(scene.group(NOW + 2, request("j"))) == [("duplicate_ignored", "same_body")]
    assert told(scene.group(NOW + 3, command("redrive"))) == [("command_refused", "already_ended")]
    assert told(scene.group(NOW + 4, request("again")), job_id="again")[0] == ("requested", None)
    later = NOW + 2 + 2 * DEDUPE_RETENTION_MS
    scene.group(later)
    assert told(scene.group(later + 1, request("j")))[0] == ("requested", None)


def test_the_late_outcome_of_a_killed_worker_changes_nothing() -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j"))
    scene.group(NOW + 1, outcomes(outcome(KEY, "started", started_at=NOW)))
    scene.alive = {"other": 1}
    found = told(scene.group(NOW + MINUTE))
    assert found[:1] == [("rescued", "worker_lost")]
    late = outcomes(outcome(KEY, "succeeded"))
    assert told(scene.group(NOW + 2 * MINUTE, late))[:1] == [("outcome_ignored", "stale_epoch")]
    assert scene.state.jobs[KEY].state != "succeeded"
