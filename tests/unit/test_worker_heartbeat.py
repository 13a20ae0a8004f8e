"""The beat: what it says of a blocked loop, when it is sent at once, and its last words."""

from __future__ import annotations

import threading

import pytest

from tests.waiting import wait_until
from tidemill.agents.worker.heartbeat import (
    HeartbeatThread,
    Snapshot,
    beat_of,
    is_big_change,
)
from tidemill.agents.worker.pulse import STILL_SECONDS, Pulse
from tidemill.schemas.marks import mark_of
from tidemill.schemas.wire import Heartbeat, KindSlots, QueueSlots, RunsAs


def room(free: int, *partitions: int, slots: int = 10, kind: RunsAs = "async") -> QueueSlots:
    kinds = {kind: KindSlots(slots=slots, free=free)}
    return QueueSlots(kinds=kinds, partitions=partitions or (1,))


def snapshot(free: int = 10, *, is_stopping: bool = False, **more: QueueSlots) -> Snapshot:
    queues = {"q": room(free), **more}
    return Snapshot(queues=queues, types=("t",), is_stopping=is_stopping)


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


@pytest.mark.parametrize(("stalled_with", "free"), [(None, 10), ([], 0), ([3, 5], 0)])
def test_a_loop_that_stands_still_is_alive_and_has_nothing_free(
    stalled_with: list[int] | None, free: int
) -> None:
    beat = beat_of(
        snapshot(), worker_id="w", incarnation=5, at_ms=7, stalled_with=stalled_with
    )
    assert beat.queues["q"].kinds == {"async": KindSlots(slots=10, free=free)}
    assert (beat.worker_id, beat.incarnation, beat.at) == ("w", 5, 7)
    assert beat.is_stalled is (stalled_with is not None)
    assert beat.begun == tuple(stalled_with or ())


def test_a_beat_of_a_former_version_is_of_a_worker_that_is_not_stalled() -> None:
    text = beat_of(snapshot(), worker_id="w", incarnation=5, at_ms=7).model_dump()
    del text["is_stalled"], text["begun"]
    assert not Heartbeat.model_validate(text).is_stalled


@pytest.mark.parametrize(
    ("before", "after", "is_big"),
    [
        (snapshot(10), snapshot(8), False), (snapshot(10), snapshot(5), True),
        (snapshot(1), snapshot(0), True), (snapshot(0), snapshot(1), True),
        (snapshot(), snapshot(is_stopping=True), True),
        (snapshot(), snapshot(r=room(1, slots=1)), True),
        (
            snapshot(),
            Snapshot(queues={"q": room(10, 1, 2)}),
            True,
        ),
        (snapshot(), Snapshot(queues={"q": room(10, kind="process")}), True),
        (snapshot(), Snapshot(queues={"q": room(10, slots=11)}), True),
    ],
)
def test_what_is_told_at_once(before: Snapshot, after: Snapshot, is_big: bool) -> None:
    assert is_big_change(before, after) is is_big


def test_the_thread_beats_at_once_on_a_big_change_and_at_the_end() -> None:
    beats = Beats()
    thread = HeartbeatThread(
        beats, worker_id="w", incarnation=1, first=snapshot(0), pulse=Pulse(),
    )
    thread.start()
    wait_until(lambda: len(beats.sent) == 1, 5, "the first beat")
    thread.update(snapshot(10))
    wait_until(lambda: len(beats.sent) == 2, 1.5, "a beat before the two seconds are over")
    thread.close()
    assert beats.is_closed.is_set()
    assert [beat.queues["q"].kinds["async"].free for beat in beats.sent] == [0, 10, 10]
    assert [beat.is_stopping for beat in beats.sent] == [False, False, True]


def test_a_stall_is_told_while_it_lasts_with_what_began_last_and_its_end_at_once() -> None:
    beats, pulse, now, told = Beats(), Pulse(), [0.0], list[bytes]()
    pulse.begin(mark_of("j", 1), 0, 1_000)
    thread = HeartbeatThread(
        beats, worker_id="w", incarnation=1, first=snapshot(), pulse=pulse, on_beat=told.append,
        clock=lambda: pulse.turned_at + now[0],
    )
    thread.start()
    wait_until(lambda: len(beats.sent) == 1, 5, "the first beat")
    now[0] = STILL_SECONDS + 1
    wait_until(lambda: len(beats.sent) == 2, 1.5, "a beat before the two seconds are over")
    now[0] = 0.0
    thread.update(snapshot())
    wait_until(lambda: len(beats.sent) == 3, 1.5, "a beat before the two seconds are over")
    thread.close()
    assert [beat.is_stalled for beat in beats.sent] == [False, True, False, False]
    assert beats.sent[1].begun == (mark_of("j", 1),)
    assert [Heartbeat.model_validate_json(value) for value in told] == beats.sent


@pytest.mark.parametrize("thrown", [SystemExit(1), RuntimeError("mocked away")], ids=repr)
def test_the_beat_goes_on_whatever_is_thrown_into_it(thrown: BaseException) -> None:
    left = [thrown, thrown]

    class Odd(Beats):
        def send(self, key: bytes, value: bytes) -> None:
            if left:
                raise left.pop()
            super().send(key, value)

    sink = Odd()
    thread = HeartbeatThread(sink, worker_id="w", incarnation=5, first=snapshot(), pulse=Pulse())
    thread.start()
    wait_until(lambda: sink.sent, 20, "no beat came any more")
    thread.close()
    assert sink.is_closed.wait(20)
