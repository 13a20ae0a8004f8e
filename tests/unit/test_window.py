"""How many jobs of a queue a partition keeps dispatched."""

from __future__ import annotations

from streams.window import (
    GROW_EVERY_MS,
    QUICK_START_MS,
    SHRINK_EVERY_MS,
    SIZE_MAX,
    START_PER_SLOT,
    Window,
)


def opened(slots: int = 10) -> Window:
    window = Window()
    window.set_slots(slots, free=slots)
    return window


def test_nobody_to_work_nothing_to_send() -> None:
    assert Window().allowance(0) == 0
    window = opened()
    window.set_slots(0, free=0)
    assert window.allowance(0) == 0


def test_it_starts_at_a_multiple_of_the_slots() -> None:
    window = opened(10)
    assert window.allowance(0) == 10 * START_PER_SLOT
    assert window.allowance(15) == 10 * START_PER_SLOT - 15
    assert window.allowance(10**6) == 0


def test_it_grows_while_it_is_used_up_and_starts_are_quick() -> None:
    window = opened(10)
    now_ms = 10**6
    for _ in range(100):
        assert window.allowance(10**6) == 0  # used up
        window.note_outcome(QUICK_START_MS - 1, now_ms)
        now_ms += GROW_EVERY_MS
    assert window.size == SIZE_MAX
    assert window.allowance(0) == SIZE_MAX


def test_it_does_not_grow_when_starts_are_slow_or_room_is_left() -> None:
    slow = opened(10)
    slow.allowance(10**6)
    slow.note_outcome(QUICK_START_MS, 10**6)
    assert slow.size == 10 * START_PER_SLOT
    roomy = opened(10)
    roomy.allowance(1)
    roomy.note_outcome(0, 10**6)
    assert roomy.size == 10 * START_PER_SLOT


def test_a_job_handed_back_closes_it_until_a_slot_is_known_to_be_free() -> None:
    window = opened(10)
    window.note_returned(10**6)
    assert window.allowance(0) == 0
    assert window.size < 10 * START_PER_SLOT
    window.set_slots(10, free=0)
    assert window.allowance(0) == 0
    window.set_slots(10, free=1)
    assert window.allowance(0) > 0
    window.note_returned(10**6 + 1)
    window.note_outcome(0, 10**6 + 2)
    assert window.allowance(0) > 0


def test_it_shrinks_at_intervals_and_never_to_nothing() -> None:
    window = opened(1)
    now_ms = 10**6
    window.note_returned(now_ms)
    size = window.size
    window.note_returned(now_ms + SHRINK_EVERY_MS - 1)
    assert window.size == size
    for _ in range(20):
        now_ms += SHRINK_EVERY_MS
        window.note_returned(now_ms)
    assert window.size == 1.0
    window.set_slots(1, free=1)
    assert window.allowance(0) == 1
