"""A worker that stands still: what the ledger makes of it, and what the worker does afterwards."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any, Final

import pytest

from tests.unit.core_kit import NOW
from tests.unit.partition_kit import (
    INCARNATION,
    WORKER_ID,
    Scene,
    events_in,
    outcome,
    outcomes,
    plain,
    request,
)
from tests.unit.worker_harness import bench_of, pack_of
from tidemill.agents.ledger.clock import LedgerClock
from tidemill.agents.ledger.workers import WorkerBook
from tidemill.agents.worker.main import GROUP_BEAT_SECONDS, SESSION_SECONDS
from tidemill.agents.worker.pulse import PAUSE_SECONDS, RING, STILL_SECONDS, Pulse
from tidemill.agents.worker.stand_in import GRACE_SECONDS, POLL_SECONDS, limit_of, state_of
from tidemill.schemas.marks import mark_of
from tidemill.schemas.wire import HEARTBEAT_MISSING_SECONDS, Heartbeat, KindSlots, QueueSlots
from tidemill.streams.policies.rescue import DISPATCH_LOST_MS
from tidemill.streams.stalls import Stall

KEY: Final = ("u", "j")
AGAIN: Final = outcome(KEY, "returned", reason="redelivered")
OTHER: Final = "other-worker"


class StallScene(Scene):
    """One dispatched job, and a worker that stands still with these attempts begun."""

    def __init__(self, *begun: tuple[str, int]) -> None:
        super().__init__(plain())
        self.alive = {WORKER_ID: INCARNATION, OTHER: 1}
        self.group(NOW, request("j"))
        self.now_ms = NOW + 5_000
        self.marks = frozenset(mark_of(*one) for one in begun)
        self.stall(is_over=False)

    def stall(self, *, is_over: bool) -> None:
        told = Stall(
            INCARNATION, self.marks, frozenset({"default"}), NOW + 5_000, self.now_ms,
            is_over=is_over,
        )
        self.stalls = {WORKER_ID: told}

    def kinds(self, after_ms: int, *inputs: Any) -> list[str]:
        """What happens to the job within that time."""
        found = self.group(self.now_ms, *inputs)
        for _ in range(after_ms // 1_000):
            self.now_ms += 1_000
            if not self.stalls[WORKER_ID].is_over:
                self.stall(is_over=False)
            found += self.group(self.now_ms)
        return [event["event"] for event in events_in(found)]


def test_what_began_in_a_stalled_worker_is_nobody_elses_however_long() -> None:
    scene = StallScene((*KEY[1:], 1))
    assert scene.kinds(10 * DISPATCH_LOST_MS, outcomes(AGAIN)) == []
    ended = scene.kinds(0, outcomes(outcome(KEY, "succeeded")))
    assert ended == ["attempt_succeeded", "succeeded"]


def test_what_had_not_begun_there_is_given_back_at_once() -> None:
    scene = StallScene(("another", 1))
    assert scene.kinds(0, outcomes(AGAIN)) == ["rescued", "dispatched"]


def test_a_stall_alone_is_no_rescue() -> None:
    scene = StallScene(("another", 1))
    again = outcome(KEY, "returned", reason="redelivered", holder=WORKER_ID)
    assert scene.kinds(0, outcomes(again)) == ["returned", "dispatched"]


@pytest.mark.parametrize("holder", [OTHER, "nobody", None, 5, ["w"]])
def test_who_had_it_and_is_not_stalled_was_lost(holder: Any) -> None:
    scene = StallScene(("another", 1))
    again = outcome(KEY, "returned", reason="redelivered", holder=holder)
    assert scene.kinds(0, outcomes(again)) == ["rescued", "dispatched"]


@pytest.mark.parametrize("marks", [(("j", 1),), ()])
@pytest.mark.parametrize("holder", [WORKER_ID, OTHER, None])
def test_a_start_that_was_told_stands_whatever_comes_again(
    marks: tuple[tuple[str, int], ...], holder: str | None
) -> None:
    scene = StallScene(*marks)
    assert scene.kinds(0, outcomes(outcome(KEY, "started"))) == ["attempt_started"]
    again = outcome(KEY, "returned", reason="redelivered", holder=holder)
    assert scene.kinds(10 * DISPATCH_LOST_MS, outcomes(again)) == []
    late = outcome(KEY, "returned", reason="worker_stalled")
    assert scene.kinds(0, outcomes(late, worker_id=OTHER)) == []


def test_a_mark_of_a_former_attempt_keeps_nothing() -> None:
    scene = StallScene((*KEY[1:], 0))
    assert scene.kinds(0, outcomes(AGAIN)) == ["rescued", "dispatched"]


@pytest.mark.parametrize(
    ("alive", "reason"), [({}, "worker_lost"), ({WORKER_ID: INCARNATION + 1}, "worker_restarted")]
)
def test_what_began_in_a_stalled_worker_that_is_gone_is_rescued(
    alive: dict[str, int], reason: str
) -> None:
    scene = StallScene((*KEY[1:], 1))
    assert scene.kinds(20_000, outcomes(AGAIN)) == []
    scene.alive = {OTHER: 1, **alive}
    scene.now_ms += 1_000
    events = events_in(scene.group(scene.now_ms))
    assert [event["event"] for event in events] == ["rescued", "dispatched"]
    assert events[0]["reason"] == reason


def test_after_a_stall_a_dispatch_that_reached_nobody_is_found_as_ever() -> None:
    scene = StallScene()
    assert scene.kinds(3 * DISPATCH_LOST_MS) == []
    scene.stall(is_over=True)
    assert scene.kinds(DISPATCH_LOST_MS) == []
    assert scene.kinds(2_000) == ["rescued", "dispatched"]


def test_a_stalled_worker_lives_has_no_room_and_its_stall_ends() -> None:
    book = WorkerBook(LedgerClock())
    room = QueueSlots(kinds={"async": KindSlots(slots=4, free=4)}, partitions=(0,))

    def beat(*, is_stalled: bool) -> Heartbeat:
        return Heartbeat(
            schema_version=1, worker_id="w", incarnation=7, at=1, queues={"default": room},
            types=("t",), running=1, is_stalled=is_stalled, begun=(5,) if is_stalled else (),
        )

    book.note_beat(beat(is_stalled=False))
    assert book.capacity()
    assert not book.stalls()
    book.note_beat(beat(is_stalled=True))
    book.note_beat(beat(is_stalled=True))
    assert not book.capacity()
    assert book.alive() == {"w": 7}
    assert book.groups()  # its types are not missing
    told = book.stalls()["w"]
    assert told[1:3] == (frozenset({5}), frozenset({"default"}))
    assert not told.is_over
    book.note_beat(beat(is_stalled=False))
    assert book.capacity()
    assert book.stalls()["w"].is_over
    assert book.stalls()["w"].marks == frozenset({5})


# --- the worker ----------------------------------------------------------------------------------


def hold_the_loop() -> None:
    """What an `async def` handler should not do."""
    threading.Event().wait(PAUSE_SECONDS + 0.2)


async def test_nothing_begins_after_a_standstill_that_had_not_begun_before() -> None:
    begun: list[str] = []

    async def block(payload: dict[str, Any]) -> None:
        begun.append(payload["name"])
        hold_the_loop()

    async with bench_of(block, concurrency=1) as bench:
        doubted = asyncio.Event()
        bench.executor.on_standstill = doubted.set
        bench.take(pack_of(("block", {"name": "a"}), ("block", {"name": "b"})))
        first, second = await bench.last("j0"), await bench.last("j1")
        assert first["kind"] == "succeeded"
        assert (second["kind"], second["reason"]) == ("returned", "worker_stalled")
        assert begun == ["a"]
        assert doubted.is_set()


async def test_time_in_which_nobody_could_be_told_counts_for_no_time_out() -> None:
    async def block(payload: dict[str, Any]) -> None:
        hold_the_loop()
        await asyncio.sleep(0.2)

    async with bench_of(block, concurrency=1) as bench:
        bench.take(pack_of(("block", {}), timeout_ms=1_500))
        assert (await bench.last())["kind"] == "succeeded"


# --- the pulse and the stand-in ------------------------------------------------------------------


def test_the_ring_keeps_the_last_ones() -> None:
    pulse = Pulse()
    for number in range(RING + 10):
        pulse.begin(number, number % 3, 1_000 + number)
    assert pulse.marks() == list(range(10, RING + 10))
    latest = RING + 9
    names = ["a", "b", "c"]
    assert pulse.handlers(2, names) == [names[latest % 3], names[(latest - 1) % 3]]
    assert pulse.longest_seconds == (1_000 + RING + 9) / 1000


def test_a_worker_may_stand_still_as_long_as_a_job_of_its_own_may_take() -> None:
    assert limit_of(600.0, 300.0) == 600.0
    assert limit_of(60.0, 300.0) == 300.0 + GRACE_SECONDS


def test_others_hear_of_a_standstill_before_the_group_forgets_the_worker() -> None:
    assert PAUSE_SECONDS < STILL_SECONDS
    assert STILL_SECONDS + GROUP_BEAT_SECONDS + 3 * POLL_SECONDS < SESSION_SECONDS
    assert SESSION_SECONDS < HEARTBEAT_MISSING_SECONDS


def test_the_state_of_a_process_is_one_letter() -> None:
    assert state_of(os.getpid()) in ("R", "S", "D")
    assert state_of(2**22 + 5) == ""
