"""What time brings is bounded in each group, and so is what a partition remembers of it.

A group that outlasts its transaction is begun again, and again: a backlog must never make one.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.unit.core_kit import DEFAULT, NOW
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
from tidemill.schemas.wire import LimitSpec
from tidemill.streams.decision import DECISION_BYTES
from tidemill.streams.dispatch.schedule import STALE_MAX
from tidemill.streams.job import JobKey
from tidemill.streams.partition import DECISIONS_MAX, Capacity
from tidemill.streams.policies.rescue import DISPATCH_LOST_MS, NO_END

Event = dict[str, Any]

DAY_MS: Final = 86_400_000
JOBS: Final = 3 * DECISIONS_MAX + 7
ONE_A_MINUTE: Final = LimitSpec(limit=1, window_ms=60_000, over="delay")


class Room(Scene):
    """A partition whose workers come and go: they are there where a group has slots."""

    def events(self, now_ms: int, *inputs: Input, slots: int = 0) -> list[Event]:
        """One committed group; its events."""
        self.rooms = {DEFAULT: Capacity(slots, slots, 1, (0,))} if slots else {}
        return events_in(self.group(now_ms, *inputs))

    def until_quiet(self, now_ms: int, slots: int = 0) -> list[list[Event]]:
        """Groups at one instant until nothing is due any more."""
        groups = [self.events(now_ms, slots=slots)]
        while self.engine.next_tick_at() <= now_ms:
            groups.append(self.events(now_ms, slots=slots))
            assert len(groups) < 1_000
        return groups


def done(keys: list[JobKey], kind: str = "succeeded") -> Input:
    facts = {"reason": "worker_stopping"} if kind == "returned" else {}
    return outcomes(*(outcome(key, kind, **facts) for key in keys))


def names(events: list[Event], kind: str) -> list[str]:
    return [event["job_id"] for event in events if event["event"] == kind]


def in_order(groups: list[list[Event]], kind: str) -> list[str]:
    return [name for events in groups for name in names(events, kind)]


ASKED: Final = [f"j{number:05}" for number in range(JOBS)]


# --- a group is bounded --------------------------------------------------------------------------


def test_what_expires_at_one_instant_does_so_in_bounded_groups() -> None:
    room = Room(plain())
    room.events(NOW, *[request(job_id, expires_at=NOW + 1_000) for job_id in ASKED])
    groups = room.until_quiet(NOW + 1_000)
    assert sorted(in_order(groups, "expired")) == ASKED
    assert max(len(names(events, "expired")) for events in groups) <= DECISIONS_MAX


def test_what_a_limit_holds_back_is_held_back_in_bounded_groups() -> None:
    room = Room(plain(ONE_A_MINUTE))
    room.events(NOW, *[request(job_id) for job_id in ASKED])
    groups = room.until_quiet(NOW + 1, slots=4)
    assert in_order(groups, "dispatched") == ASKED[:1]
    assert in_order(groups, "deferred") == ASKED[1:]
    assert max(len(events) for events in groups) <= DECISIONS_MAX


def test_jobs_whose_type_is_told_of_go_on_in_bounded_groups_and_before_later_ones() -> None:
    room = Room()
    room.events(NOW, *[request(job_id) for job_id in ASKED])
    room.definitions = [plain()]
    # Asked for while the others are still being resolved.
    first = room.events(NOW + 1, request("later"))
    groups = [first, *room.until_quiet(NOW + 1)]
    assert max(len(events) for events in groups) <= 2 * DECISIONS_MAX
    assert not room.state.policies.unknown_type.resolving
    waiting = room.engine.schedule.pool(DEFAULT).waiting
    # A key may stand there twice: the second one is dropped when it comes up.
    assert list(dict.fromkeys(key[1] for key in waiting)) == [*ASKED, "later"]


def test_the_rest_of_those_goes_on_after_a_restore_and_after_an_undo() -> None:
    scene = Scene()
    for first in range(0, JOBS, 1_000):
        scene.group(NOW, *[request(job_id) for job_id in ASKED[first : first + 1_000]])
    scene.definitions = [plain()]
    scene.group(NOW + 1)
    scene.restore(NOW + 2)
    assert scene.engine.state.policies.unknown_type.resolving
    scene.engine.begin(NOW + 2)
    scene.engine.tick()
    scene.engine.rollback()
    assert scene.engine.state.policies.unknown_type.resolving
    for _ in range(4):
        scene.group(NOW + 3)
    assert not scene.engine.state.policies.unknown_type.resolving
    assert not scene.engine.schedule.wait_lists


def test_rescues_are_bounded() -> None:
    room = Room(plain())
    room.events(NOW, *[request(job_id) for job_id in ASKED[:3_000]])
    room.until_quiet(NOW + 1, slots=1_600)
    assert len(room.in_flight()) == 3_000
    later = NOW + 2 + DISPATCH_LOST_MS
    groups = room.until_quiet(later, slots=1_600)
    assert len(in_order(groups, "rescued")) == 3_000
    assert max(len(names(events, "rescued")) for events in groups) <= DECISIONS_MAX


def test_a_group_is_bounded_in_bytes() -> None:
    room = Room(plain())
    payload = {"text": "x" * 100 * DECISION_BYTES}
    room.events(NOW, *[request(job_id, payload=payload) for job_id in ASKED[:50]])
    groups = room.until_quiet(NOW + 1, slots=4_000)
    assert in_order(groups, "dispatched") == ASKED[:50]
    assert max(len(names(events, "dispatched")) for events in groups) <= 20


# --- what is remembered is bounded ---------------------------------------------------------------


def test_ended_jobs_are_forgotten_as_fast_as_they_end() -> None:
    room = Room(plain(), retention_ms=10_000)
    a_second = 2_000
    for second in range(30):
        asked = [request(f"{second}-{number}") for number in range(a_second)]
        room.events(NOW + second * 1_000, done(room.in_flight()), *asked, slots=4_000)
        for part in range(1, 5):
            room.events(NOW + second * 1_000 + part * 200, slots=4_000)
    assert len(room.state.finished) <= 2 * 10 * a_second


def test_timers_of_jobs_that_have_ended_are_cleared_out() -> None:
    room = Room(plain(), retention_ms=1_000)
    jobs = 0
    for step in range(30):
        now_ms = NOW + step * 2_000
        asked = [
            request(f"{step}-{number}", expires_at=NOW + 300 * DAY_MS) for number in range(1_000)
        ]
        jobs += len(asked)
        room.events(now_ms, done(room.in_flight()), *asked, slots=4_000)
    assert jobs > 2 * STALE_MAX
    assert len(room.engine.schedule._timers) <= 4 * len(room.state.jobs) + STALE_MAX + 1_000


def test_lines_without_workers_keep_no_keys_of_ended_jobs() -> None:
    room = Room(plain())
    for step in range(30):
        asked = [
            request(f"{step}-{number}", expires_at=NOW + step * 2_000 + 500)
            for number in range(1_000)
        ]
        room.events(NOW + step * 2_000, *asked)
    alive = [request("alive")]
    room.events(NOW + 100_000, *alive)
    room.until_quiet(NOW + 102_000)
    line = room.engine.schedule.pool(DEFAULT).waiting
    assert len(line) <= STALE_MAX + 2 * len(room.state.jobs) + 1_000
    assert in_order(room.until_quiet(NOW + 103_000, slots=4), "dispatched") == ["alive"]


# --- timers and gates ----------------------------------------------------------------------------


def test_a_timer_of_an_earlier_job_of_an_id_ends_no_later_one() -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j", expires_at=NOW + 3 * DAY_MS))
    scene.group(NOW + 1_000, done([("u", "j")]))
    scene.group(NOW + 2 * DAY_MS)
    again = scene.group(NOW + 2 * DAY_MS + 6_000, request("j", run_at=NOW + 5 * DAY_MS))
    assert events_of(again) == ["requested", "scheduled"]
    assert events_of(scene.group(NOW + 3 * DAY_MS + 1_000)) == []
    assert events_of(scene.group(NOW + 5 * DAY_MS + 1)) == ["dispatched"]


@pytest.mark.parametrize(
    "limits", [(), (LimitSpec(limit=1_000, window_ms=1_000, over="delay"),)], ids=["none", "higher"]
)
def test_a_changed_limit_acts_on_who_waits_already(limits: tuple[LimitSpec, ...]) -> None:
    scene = Scene(plain(LimitSpec(limit=1, window_ms=DAY_MS, over="delay")))
    scene.group(NOW, request("a"), request("b"))
    assert events_of(scene.group(NOW + 1_000), "b") == []
    scene.definitions = [plain(*limits)]
    assert events_of(scene.group(NOW + 2_000), "b") == ["dispatched"]


def test_a_gate_keeps_its_order_while_nobody_works() -> None:
    room = Room(plain(ONE_A_MINUTE))
    asked = [f"{number:02}" for number in range(12)]
    groups = [room.events(NOW, *[request(job_id) for job_id in asked], slots=4)]
    now_ms = NOW
    for _ in range(200):  # the window is over three times meanwhile
        now_ms += 1_000
        groups.append(room.events(now_ms))
    for _ in range(12 * 61):
        now_ms += 1_000
        ended = [done(room.in_flight())] if room.in_flight() else []
        groups.append(room.events(now_ms, *ended, slots=4))
    assert in_order(groups, "dispatched") == asked
    assert len(in_order(groups, "deferred")) == len(asked) - 1


def test_a_job_that_was_let_through_too_early_keeps_its_place() -> None:
    room = Room(plain(ONE_A_MINUTE))
    room.events(NOW, *[request(job_id) for job_id in ("a", "b", "c")], slots=4)
    room.events(NOW + 60_000, done(room.in_flight()))  # b is let through, and finds no worker
    # Of a higher priority, it goes first and takes the start.
    room.definitions = [plain()]
    groups = [room.events(NOW + 60_500, request("z", priority="high"), slots=1)]
    room.definitions = [plain(ONE_A_MINUTE)]
    for second in range(1, 200):
        ended = [done(room.in_flight())] if room.in_flight() else []
        groups.append(room.events(NOW + 60_500 + second * 1_000, *ended, slots=4))
    found = in_order(groups, "dispatched")
    assert found.index("b") < found.index("c")


def test_what_is_handed_back_is_dispatched_in_its_order() -> None:
    room = Room(plain())
    asked = [str(number) for number in range(6)]
    room.events(NOW, *[request(job_id) for job_id in asked], slots=4)
    assert len(room.in_flight()) == 6
    again = room.events(NOW + 1_000, done(room.in_flight(), "returned"), slots=4)
    again += room.events(NOW + 1_100, slots=4)
    assert names(again, "dispatched") == asked


def test_nothing_is_lost_while_nothing_can_be_heard() -> None:
    room = Room(plain())
    room.events(NOW, request("j"), slots=4)
    engine = room.engine
    later = NOW + DISPATCH_LOST_MS + 5_000
    for since_ms, until_ms in ((later - 10, NO_END), (0, NOW + 1_000)):
        engine.begin(later)
        engine.set_workers({"w": 7}, heard_since_ms=since_ms, heard_until_ms=until_ms)
        engine.set_capacity({DEFAULT: Capacity(4, 4, 1, (0,))})
        engine.tick()
        assert not [topic for topic, *_ in engine.seal() if topic == TOPICS.events]
        engine.commit()
        later += 2_000
