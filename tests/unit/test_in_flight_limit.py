"""How many jobs of a line a partition keeps dispatched."""

from __future__ import annotations

import pytest

from tidemill.streams.dispatch.in_flight_limit import (
    GROW_EVERY_MS,
    GROW_FACTOR,
    IDLE_MS,
    LATE_START_MS,
    QUICK_START_MS,
    SHORT_RUN_MS,
    SHRINK_EVERY_MS,
    SHRINK_FACTOR,
    SIZE_MAX,
    START_PER_SLOT,
    START_SHARE_MIN,
    USE_MS,
    InFlightLimit,
)

NOW_MS = 10**6


def opened(slots: int = 10) -> InFlightLimit:
    window = InFlightLimit()
    window.set_slots(slots, free=slots)
    window.allowance(0, NOW_MS)
    return window


def test_nobody_to_work_nothing_to_send() -> None:
    assert InFlightLimit().allowance(0, NOW_MS) == 0
    window = opened()
    window.set_slots(0, free=0)
    assert window.allowance(0, NOW_MS) == 0


def test_it_starts_at_a_multiple_of_the_slots() -> None:
    window = opened(10)
    assert window.allowance(0, NOW_MS) == 10 * START_PER_SLOT
    assert window.allowance(15, NOW_MS) == 10 * START_PER_SLOT - 15
    assert window.allowance(10**6, NOW_MS) == 0


def test_it_grows_while_it_is_used_up_and_starts_are_quick() -> None:
    window = opened(10)
    now_ms = 10**6
    for _ in range(100):
        assert window.allowance(10**6, NOW_MS) == 0  # used up
        window.note_use(int(window.size))
        window.note_outcome(QUICK_START_MS - 1, 0, now_ms)
        now_ms += GROW_EVERY_MS
    assert window.size == SIZE_MAX
    assert window.allowance(0, NOW_MS) == SIZE_MAX


def test_it_does_not_grow_when_starts_are_slow_or_room_is_left() -> None:
    slow = opened(10)
    slow.allowance(10**6, NOW_MS)
    slow.note_outcome(QUICK_START_MS, 0, 10**6)
    assert slow.size == 10 * START_PER_SLOT
    roomy = opened(10)
    roomy.allowance(1, NOW_MS)
    roomy.note_outcome(0, 0, 10**6)
    assert roomy.size == 10 * START_PER_SLOT


def test_a_job_handed_back_closes_it_until_a_slot_is_known_to_be_free() -> None:
    window = opened(10)
    window.note_returned(10**6)
    assert window.allowance(0, NOW_MS) == 0
    assert window.size < 10 * START_PER_SLOT
    window.set_slots(10, free=0)
    assert window.allowance(0, NOW_MS) == 0
    window.set_slots(10, free=1)
    assert window.allowance(0, NOW_MS) > 0
    window.note_returned(10**6 + 1)
    window.note_outcome(0, 0, 10**6 + 2)
    assert window.allowance(0, NOW_MS) > 0


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
    assert window.allowance(0, NOW_MS) == 1


@pytest.mark.parametrize(
    ("slots", "partitions", "expected"),
    [(100, 1, 200), (100, 4, 50), (100, 64, 100 * START_SHARE_MIN), (2, 4, 1), (1, 64, 1)],
)
def test_each_partition_starts_with_its_share(
    slots: int, partitions: int, expected: float
) -> None:
    window = InFlightLimit()
    window.set_slots(slots, free=slots, partitions=partitions)
    assert window.size == expected


def test_who_is_alone_gets_all_slots_when_the_workers_say_that_they_are_free() -> None:
    window = InFlightLimit()
    window.set_slots(100, free=100, partitions=4, heartbeat_version=1)
    assert window.allowance(0, NOW_MS) == 100  # they have said so, and nothing is out
    assert window.allowance(100, NOW_MS) == 0
    for told, in_flight, free, more in ((2, 60, 30, 30), (3, 100, 0, 0), (4, 10, 0, 40)):
        window.set_slots(100, free=free, partitions=4, heartbeat_version=told)
        assert window.allowance(in_flight, NOW_MS) == more
    # As jobs end, others follow; what was said once does not count twice.
    window.set_slots(100, free=30, partitions=4, heartbeat_version=5)
    assert [window.allowance(out, NOW_MS) for out in (60, 90, 80, 90)] == [30, 0, 10, 0]
    window.set_slots(100, free=30, partitions=4, heartbeat_version=5)
    assert window.allowance(90, NOW_MS) == 0
    # However often they are wrong, no more than all partitions together begin with.
    for told in range(6, 60):
        window.set_slots(100, free=100, partitions=4, heartbeat_version=told)
        window.allowance(190, NOW_MS)
    assert window.allowance(190, NOW_MS) == 10


def test_it_doubles_until_it_was_too_large_once() -> None:
    window = opened(10)
    now_ms = 10**6
    sizes = [window.size]
    for _ in range(3):
        window.allowance(10**6, NOW_MS)
        now_ms += GROW_EVERY_MS
        window.note_outcome(0, 0, now_ms)
        sizes.append(window.size)
    assert sizes == [20, 41, 83, 167]
    window.note_returned(now_ms)
    assert window.size == 167 * SHRINK_FACTOR
    window.note_outcome(0, 0, now_ms + 1)
    window.allowance(10**6, NOW_MS)
    window.note_outcome(0, 0, now_ms + GROW_EVERY_MS)
    assert window.size == 167 * SHRINK_FACTOR * GROW_FACTOR + 1


def test_it_shrinks_while_all_start_late_and_not_below_where_it_began() -> None:
    window = opened(10)
    now_ms = 10**6
    for _ in range(6):
        window.allowance(10**6, NOW_MS)
        now_ms += GROW_EVERY_MS
        window.note_outcome(0, 0, now_ms)
    large = window.size
    # One that started in time shows that there is no standing line.
    window.note_start(LATE_START_MS, now_ms + 1)
    window.note_start(LATE_START_MS - 1, now_ms + GROW_EVERY_MS)
    assert window.size == large
    for _ in range(100):
        now_ms += SHRINK_EVERY_MS
        window.note_start(LATE_START_MS, now_ms)
        assert window.allowance(0, NOW_MS) > 0
    assert window.size == 10 * START_PER_SLOT


def grown() -> InFlightLimit:
    """A window that many quick jobs have made large."""
    window = opened(10)
    for step in range(1, 9):
        window.allowance(10**6, NOW_MS + step * GROW_EVERY_MS)
        window.note_use(int(window.size))
        window.note_outcome(0, 0, NOW_MS + step * GROW_EVERY_MS)
    assert window.size > 1_000
    return window


def test_what_is_not_used_of_it_goes_within_seconds() -> None:
    window, now_ms = grown(), NOW_MS + USE_MS
    for second in range(4):
        now_ms += USE_MS
        window.allowance(20, now_ms)
        window.note_use(100)
        if second > 0:
            assert window.size == 200
    # Much of it used, much of it kept; and what was handed back does not come again by that.
    for _ in range(3):
        now_ms += USE_MS
        window.allowance(0, now_ms)
        window.note_use(190)
    assert window.size == 200
    window.note_returned(now_ms)
    window.allowance(0, now_ms + USE_MS)
    assert window.size == 200 * SHRINK_FACTOR


def test_after_a_pause_it_begins_anew() -> None:
    window = grown()
    assert window.allowance(0, NOW_MS + 8 * GROW_EVERY_MS + IDLE_MS) == 10 * START_PER_SLOT
    assert window.size == 10 * START_PER_SLOT


@pytest.mark.parametrize("run_ms", [SHORT_RUN_MS - 1, SHORT_RUN_MS])
def test_it_grows_for_short_jobs_only(run_ms: int) -> None:
    window = opened(10)
    window.allowance(10**6, NOW_MS)
    window.note_outcome(0, 0, NOW_MS + 1)  # a look begins
    window.allowance(10**6, NOW_MS)
    size = window.size
    window.note_outcome(0, run_ms, NOW_MS + 2)
    window.note_outcome(0, run_ms, NOW_MS + 2 * GROW_EVERY_MS)
    assert (window.size > size) == (run_ms < SHORT_RUN_MS)


def test_an_attempt_that_goes_on_is_no_short_one() -> None:
    window = opened(10)
    window.allowance(10**6, NOW_MS)
    window.note_start(0, NOW_MS)
    assert window.size == 10 * START_PER_SLOT
