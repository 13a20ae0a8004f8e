"""Ended jobs, packed: recognised until they are forgotten, oldest first."""

from __future__ import annotations

import pytest

from tidemill.schemas.words import TERMINAL_STATES, State
from tidemill.streams.store.finished import Ended, FinishedJobs, digest_of


def digest(n: int) -> bytes:
    return digest_of(("u", str(n)))


def filled(count: int) -> FinishedJobs:
    """Job n ended at n."""
    finished = FinishedJobs()
    for n in range(count):
        finished.add(digest(n), *Ended(n, n, State.SUCCEEDED))
    return finished


@pytest.mark.parametrize("state", sorted(TERMINAL_STATES))
@pytest.mark.parametrize("fingerprint", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("finished_at", [0, 1_760_000_000_123, 2**53])
def test_packing_loses_nothing(state: State, fingerprint: int, finished_at: int) -> None:
    finished = FinishedJobs()
    ended = Ended(finished_at, fingerprint, state)
    finished.add(digest(1), *ended)
    assert finished.get(digest(1)) == ended
    assert finished.get(digest(2)) is None


def test_ids_that_look_alike_are_told_apart() -> None:
    assert digest_of(("a", "bc")) != digest_of(("ab", "c"))
    assert len(digest_of(("a" * 256, "\U0001f409"))) == 16


def test_the_oldest_are_forgotten_first_by_time() -> None:
    finished = filled(10)
    assert finished.forget_until(4, count_max=100, at_most=100) == [digest(n) for n in range(4)]
    assert finished.forget_until(4, count_max=100, at_most=100) == []
    assert finished.get(digest(3)) is None
    assert finished.get(digest(4)) is not None


def test_the_oldest_are_forgotten_first_by_count() -> None:
    finished = filled(10)
    assert len(finished.forget_until(0, count_max=7, at_most=100)) == 3
    assert len(finished) == 7
    assert set(finished) == {digest(n) for n in range(3, 10)}


def test_a_bounded_number_is_forgotten_at_once() -> None:
    finished = filled(10)
    assert len(finished.forget_until(10, count_max=100, at_most=4)) == 4
    assert len(finished.forget_until(10, count_max=100, at_most=40)) == 6
    assert len(finished) == 0


def test_forgetting_can_be_undone_until_it_is_settled() -> None:
    finished = filled(4)
    finished.forget_until(1, count_max=100, at_most=100)
    finished.commit()
    finished.forget_until(3, count_max=100, at_most=100)
    finished.rollback()
    finished.rollback()
    assert len(finished) == 3
    assert finished.get(digest(1)) == Ended(1, 1, State.SUCCEEDED)
    assert finished.forget_until(9, count_max=9, at_most=9) == [digest(n) for n in (1, 2, 3)]


def test_rows_read_in_any_order_are_sorted_by_time() -> None:
    finished = FinishedJobs()
    for n in (5, 1, 4, 2, 3):
        finished.add(digest(n), *Ended(n, 2**32 - n, State.SUCCEEDED))
    finished.sort()
    assert finished.forget_until(4, count_max=100, at_most=2) == [digest(1), digest(2)]
