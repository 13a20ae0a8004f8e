"""The contiguous acked prefix: what may be committed, in every order of acks."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from tidemill.agents.runtime.tracker import OffsetTracker


@dataclass(frozen=True)
class Delivered:
    offset: int


def records(*offsets: int) -> list[Delivered]:
    return [Delivered(offset) for offset in offsets]


def test_nothing_acked_commits_nothing() -> None:
    tracker = OffsetTracker()
    tracker.deliver(records(38, 39))
    assert tracker.committable() is None


def test_a_running_head_holds_back_all_that_follows() -> None:
    tracker = OffsetTracker()
    head = tracker.deliver(records(38))
    rest = tracker.deliver(records(39, 40, 41))
    rest.ack()
    assert tracker.committable() is None
    head.ack()
    assert tracker.committable() == 42


def test_first_offset_of_a_new_group_is_not_skipped() -> None:
    tracker = OffsetTracker()
    run = tracker.deliver(records(0, 1, 2, 3, 4, 5))
    run.ack_offset(5)
    assert tracker.committable() is None


def test_part_of_a_run_commits_its_prefix() -> None:
    tracker = OffsetTracker()
    run = tracker.deliver(records(10, 11, 12, 13))
    run.ack_offset(12)
    run.ack_offset(10)
    assert tracker.committable() == 11
    tracker.on_committed(11)
    assert tracker.committable() is None
    run.ack_offset(11)
    assert tracker.committable() == 13
    run.ack()
    assert tracker.committable() == 14


def test_gaps_of_the_log_do_not_hold_back() -> None:
    tracker = OffsetTracker()
    first = tracker.deliver(records(10, 20))
    second = tracker.deliver(records(57))
    second.ack()
    first.ack_offset(20)
    assert tracker.committable() is None
    first.ack_offset(10)
    assert tracker.committable() == 58


def test_the_same_position_is_committed_once() -> None:
    tracker = OffsetTracker()
    tracker.deliver(records(1)).ack()
    assert tracker.committable() == 2
    assert tracker.committable() == 2, "a commit that failed is asked for again"
    tracker.on_committed(2)
    assert tracker.committable() is None


def test_what_an_owner_before_applied_is_committed_though_nothing_comes() -> None:
    tracker = OffsetTracker()
    tracker.resume_at(9)
    assert tracker.committable() == 9
    tracker.on_committed(9)
    assert tracker.committable() is None
    run = tracker.deliver(records(9, 10))
    assert tracker.committable() is None
    run.ack()
    assert tracker.committable() == 11


def test_acks_after_a_revoke_are_ignored() -> None:
    tracker = OffsetTracker()
    stale = tracker.deliver(records(5, 6))
    assert (stale.is_stale, tracker.unacked_records) == (False, 2)
    tracker.clear()
    assert (stale.is_stale, tracker.unacked_records) == (True, 0)
    assert stale.ack() is False
    assert stale.ack_offset(5) is False
    fresh = tracker.deliver(records(5))
    assert tracker.committable() is None
    assert fresh.ack() is True
    assert tracker.committable() == 6


def test_acking_twice_counts_once() -> None:
    tracker = OffsetTracker()
    run = tracker.deliver(records(1, 2), size_bytes=100)
    assert run.ack_offset(1) is True
    assert run.ack_offset(1) is False
    assert (tracker.unacked_records, tracker.unacked_bytes) == (1, 100)
    assert run.ack() is True
    assert run.ack() is False
    assert (tracker.unacked_records, tracker.unacked_bytes) == (0, 0)


def test_an_offset_of_another_run_is_refused() -> None:
    run = OffsetTracker().deliver(records(4, 5))
    with pytest.raises(ValueError, match="offset 6"):
        run.ack_offset(6)


@pytest.mark.parametrize("seed", range(50))
def test_random_acks_never_pass_an_unacked_record(seed: int) -> None:
    chance = random.Random(seed)
    tracker = OffsetTracker()
    offset, unacked, runs = 0, set[int](), []
    for _ in range(20):
        offsets = []
        for _ in range(chance.randint(1, 6)):
            offset += chance.randint(1, 4)
            offsets.append(offset)
        unacked.update(offsets)
        runs.append((tracker.deliver(records(*offsets)), offsets))
    todo = [(run, one) for run, offsets in runs for one in offsets]
    chance.shuffle(todo)
    committed = 0
    for run, one in todo:
        assert run.ack_offset(one)
        unacked.discard(one)
        found = tracker.committable()
        if found is not None:
            assert found > committed
            assert all(left >= found for left in unacked)
            committed = found
            tracker.on_committed(found)
        assert tracker.unacked_records == len(unacked)
    assert committed == offset + 1
