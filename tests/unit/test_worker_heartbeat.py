"""The beat: what it says of a blocked loop, when it is sent at once, and its last words."""

from __future__ import annotations

import threading

import pytest

from agents.worker.heartbeat import (
    LOOP_BLOCKED_SECONDS,
    HeartbeatThread,
    Snapshot,
    beat_of,
    is_big_change,
)
from schemas.wire import Heartbeat, KindSlots, QueueSlots, RunsAs
from tests.waiting import wait_until


def room(free: int, *partitions: int, slots: int = 10, kind: RunsAs = "async") -> QueueSlots:
    kinds = {kind: KindSlots(slots=slots, free=free)}
    return QueueSlots(kinds=kinds, partitions=partitions or (1,))


def snapshot(free: int = 10, *, is_stopping: bool = False, **more: QueueSlots) -> Snapshot:
    queues = {"q": room(free), **more}
    return Snapshot(made_at=100.0, queues=queues, types=("t",), is_stopping=is_stopping)


class Beats:
    """`BeatSink` in memory."""

    def __init__(self) -> None:
        self.sent: list[Heartbeat] = []
        self.is_closed = threading.Event()

    def send(self, key: bytes, value: bytes) -> None:
        assert key == b"w"
        self.sent.append(Heartbeat.model_validate_json(value))

    def close(self) -> None:
        self.is_closed.set()


@pytest.mark.parametrize(("late_seconds", "free"), [(0, 10), (LOOP_BLOCKED_SECONDS + 1, 0)])
def test_a_blocked_loop_is_alive_and_has_nothing_free(late_seconds: float, free: int) -> None:
    beat = beat_of(
        snapshot(), worker_id="w", incarnation=5, now=100.0 + late_seconds, at_ms=7
    )
    assert beat.queues["q"].kinds == {"async": KindSlots(slots=10, free=free)}
    assert (beat.worker_id, beat.incarnation, beat.at) == ("w", 5, 7)


@pytest.mark.parametrize(
    ("before", "after", "is_big"),
    [
        (snapshot(10), snapshot(8), False), (snapshot(10), snapshot(5), True),
        (snapshot(1), snapshot(0), True), (snapshot(0), snapshot(1), True),
        (snapshot(), snapshot(is_stopping=True), True),
        (snapshot(), snapshot(r=room(1, slots=1)), True),
        (
            snapshot(),
            Snapshot(made_at=0, queues={"q": room(10, 1, 2)}),
            True,
        ),
        (snapshot(), Snapshot(made_at=0, queues={"q": room(10, kind="process")}), True),
        (snapshot(), Snapshot(made_at=0, queues={"q": room(10, slots=11)}), True),
    ],
)
def test_what_is_told_at_once(before: Snapshot, after: Snapshot, is_big: bool) -> None:
    assert is_big_change(before, after) is is_big


def test_the_thread_beats_at_once_on_a_big_change_and_at_the_end() -> None:
    beats = Beats()
    thread = HeartbeatThread(
        beats, worker_id="w", incarnation=1, first=snapshot(0), clock=lambda: 100.0
    )
    thread.start()
    wait_until(lambda: len(beats.sent) == 1, 5, "the first beat")
    thread.update(snapshot(10))
    wait_until(lambda: len(beats.sent) == 2, 1.5, "a beat before the two seconds are over")
    thread.close()
    assert beats.is_closed.is_set()
    assert [beat.queues["q"].kinds["async"].free for beat in beats.sent] == [0, 10, 10]
    assert [beat.is_stopping for beat in beats.sent] == [False, False, True]
