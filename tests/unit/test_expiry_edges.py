"""Nothing is dispatched at or after its `expires_at`, whatever is behind with its timers.

The instant passes while the ledger is away, behind a backlog, at a limit's gate, while nobody knows
the type. What was dispatched once has begun in time, however often it comes back.
"""

from __future__ import annotations

from typing import Final

import pytest

from tests.unit.core_kit import DEFAULT, NOW
from tests.unit.partition_kit import (
    INCARNATION,
    Input,
    Scene,
    events_in,
    outcome,
    outcomes,
    plain,
    request,
)
from tidemill.schemas.wire import Definition, LimitSpec
from tidemill.streams.dispatch.slot_pool import SlotPoolName
from tidemill.streams.partition import DECISIONS_MAX, Capacity

EXPIRES_AT: Final = NOW + 2_000
MANY: Final = DECISIONS_MAX + 11  # more than the timers of one group
BIG: Final = {"text": "x" * 900_000}
ONE_A_SECOND: Final = LimitSpec(limit=1, window_ms=1_000, over="delay")
NOBODY: Final[dict[SlotPoolName, Capacity]] = {}
WIDE: Final = {DEFAULT: Capacity(2_000, 2_000, 1, (0,))}


def kinds(scene: Scene, now_ms: int, *inputs: Input) -> dict[str, list[str]]:
    """Groups at one instant until nothing is due: the jobs of each kind of event."""
    found: dict[str, list[str]] = {}
    pending = inputs
    for _ in range(100):
        for event in events_in(scene.group(now_ms, *pending)):
            found.setdefault(event["event"], []).append(event["job_id"])
        pending = ()
        if scene.engine.next_tick_at() > now_ms:
            return found
    raise AssertionError("never quiet")


@pytest.mark.parametrize(
    ("count", "payload", "late_ms"),
    [(12, BIG, 6_000), (14, BIG, 0), (MANY, {}, 6_000), (3, {}, 0), (3, {}, 1)],
)
@pytest.mark.parametrize("is_restored", [True, False], ids=["new owner", "same owner"])
def test_the_ledger_is_away_over_the_instant(
    count: int, payload: dict[str, str], late_ms: int, is_restored: bool
) -> None:
    scene = Scene(plain())
    scene.rooms = NOBODY
    for first in range(0, count, 2_000):
        asked = [
            # Who is first in line has the last timer.
            request(f"j{number}", expires_at=EXPIRES_AT - number % 1_000, payload=payload)
            for number in range(first, min(count, first + 2_000))
        ]
        scene.group(NOW, *asked)
    scene.rooms = WIDE
    now_ms = EXPIRES_AT + late_ms
    if is_restored:
        scene.restore(now_ms)
    found = kinds(scene, now_ms)
    assert len(found.pop("expired")) == count
    assert not found


def test_at_the_last_moment_it_still_goes() -> None:
    scene = Scene(plain())
    scene.rooms = NOBODY
    scene.group(NOW, request("j", expires_at=EXPIRES_AT))
    scene.rooms = WIDE
    assert kinds(scene, EXPIRES_AT - 1) == {"dispatched": ["j"]}


@pytest.mark.parametrize("run_at", [EXPIRES_AT, EXPIRES_AT + 1_000, EXPIRES_AT - 500])
def test_run_at_beside_expires_at_while_the_ledger_is_away(run_at: int) -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j", run_at=run_at, expires_at=EXPIRES_AT))
    scene.restore(EXPIRES_AT + 6_000)
    assert kinds(scene, EXPIRES_AT + 6_000) == {"expired": ["j"]}


def test_an_expired_job_at_the_gate_of_a_limit_takes_no_start_away() -> None:
    scene = Scene(plain(ONE_A_SECOND))
    asked = [request(f"j{number}", expires_at=EXPIRES_AT) for number in range(50)]
    first = kinds(scene, NOW, *asked, request("good"))
    assert first["dispatched"] == ["j0"]
    # The gate opens at the very instant at which the others expire, and later.
    found = kinds(scene, EXPIRES_AT + 500)
    assert sorted(found["expired"]) == sorted(f"j{number}" for number in range(1, 50))
    assert found["dispatched"] == ["good"]


def test_a_type_that_becomes_known_too_late() -> None:
    scene = Scene()
    scene.group(NOW, request("j", expires_at=EXPIRES_AT), request("good"))
    scene.definitions = [Definition(schema_version=1, type="t")]
    scene.restore(EXPIRES_AT)
    found = kinds(scene, EXPIRES_AT)
    assert found.pop("expired") == ["j"]
    assert found == {"scheduled": ["good"], "dispatched": ["good"]}


@pytest.mark.parametrize("comes_back", ["returned", "rescued", "retried"])
def test_what_was_dispatched_in_time_is_not_expired(comes_back: str) -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j", expires_at=EXPIRES_AT))
    key = ("u", "j")
    later = EXPIRES_AT + 60_000
    match comes_back:
        case "returned":
            told = outcome(key, "returned", reason="worker_stopping")
            found = kinds(scene, later, outcomes(told))
        case "retried":
            scene.group(NOW + 1, outcomes(outcome(key, "failed", retry_after_ms=10_000)))
            found = kinds(scene, later)
        case _:
            scene.group(NOW + 1, outcomes(outcome(key, "started")))
            scene.alive = {"w": INCARNATION + 1}
            found = kinds(scene, later)
    assert found["dispatched"] == ["j"]
    assert "expired" not in found
