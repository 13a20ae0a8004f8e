"""Per-user rate limits: exact at every position."""

from __future__ import annotations

import random

import pytest

from tidemill.schemas.wire import LimitSpec
from tidemill.streams import limits
from tidemill.streams.job_type import Limit
from tidemill.streams.limits import NOTHING_USED, LimitState

SKIP_2 = Limit(LimitSpec(limit=2, window_ms=100, over="skip"))
DELAY_2 = Limit(LimitSpec(limit=2, window_ms=100, over="delay"))
DELAY_5 = Limit(LimitSpec(limit=5, window_ms=1_000, over="delay"))


@pytest.mark.parametrize(
    ("state", "now_ms", "is_over"),
    [
        (NOTHING_USED, 0, False),
        (LimitState(0, (0,)), 99, False),
        (LimitState(0, (0, 50)), 99, True),
        (LimitState(0, (0, 50)), 100, False),  # a start at t counts until t + window
        (LimitState(1, (50,)), 99, True),
        (LimitState(2, ()), 10**9, True),
        (LimitState(1, ()), 0, False),
    ],
)
def test_skip(state: LimitState, now_ms: int, is_over: bool) -> None:
    assert limits.is_over_skip((SKIP_2,), state, now_ms) == is_over
    assert not limits.is_over_skip((DELAY_2,), state, now_ms)


@pytest.mark.parametrize(
    ("specs", "state", "now_ms", "due"),
    [
        ((DELAY_2,), NOTHING_USED, 7, 7),
        ((DELAY_2,), LimitState(0, (0,)), 7, 7),
        ((DELAY_2,), LimitState(0, (0, 5)), 7, 100),
        ((DELAY_2,), LimitState(0, (0, 5)), 100, 100),
        ((DELAY_2,), LimitState(0, (0, 5, 60)), 99, 105),
        ((SKIP_2,), LimitState(9, (0, 5)), 7, 7),
        ((DELAY_2, DELAY_5), LimitState(0, (0, 1, 200, 201, 400)), 410, 1_000),
        ((), LimitState(0, (0, 5)), 7, 7),
    ],
)
def test_delay(specs: tuple[Limit, ...], state: LimitState, now_ms: int, due: int) -> None:
    assert limits.delayed_until(specs, state, now_ms) == due
    assert (limits.free_starts(specs, state, now_ms) > 0) == (due <= now_ms)


def test_starts_that_wait_for_their_instant_break_no_window() -> None:
    rng = random.Random(3)
    specs = (DELAY_2, DELAY_5)
    state, now_ms, starts = NOTHING_USED, 0, []
    for _ in range(300):
        now_ms = max(now_ms + rng.randrange(40), limits.delayed_until(specs, state, now_ms))
        state = limits.start(specs, state, now_ms, is_held=False)
        starts.append(now_ms)
    for spec in specs:
        for first, last in zip(starts, starts[spec.limit :], strict=False):
            assert last - first >= spec.window_ms
    assert state.started == tuple(starts[-5:])


def test_the_estimate_counts_who_is_ahead_and_stays_within_bounds() -> None:
    used = LimitState(0, (0, 5))
    assert limits.estimated_due((DELAY_2,), used, 7, ahead=0) == 100
    assert limits.estimated_due((DELAY_2,), used, 7, ahead=2) == 200
    assert limits.estimated_due((DELAY_2,), used, 7, ahead=10**18) == 7 + limits.ESTIMATE_MS_MAX


def test_a_held_job_takes_its_place_with_its_first_dispatch() -> None:
    held = limits.hold(limits.hold(NOTHING_USED))
    assert held == LimitState(2, ())
    assert limits.start((SKIP_2,), held, 5, is_held=True) == LimitState(1, (5,))
    assert limits.start((SKIP_2,), held, 5, is_held=False) == LimitState(2, (5,))
    assert limits.release(held) == LimitState(1, ())
    assert limits.release(NOTHING_USED) == NOTHING_USED


def test_a_type_that_lost_its_limits_keeps_nothing() -> None:
    assert limits.start((), LimitState(1, (3, 4)), 5, is_held=True) == NOTHING_USED


def test_what_no_window_looks_at_any_more_is_forgotten_and_nothing_else() -> None:
    specs = (
        Limit(LimitSpec(limit=1_000, window_ms=1_000, over="delay")),
        Limit(LimitSpec(limit=3, window_ms=5_000, over="skip")),
    )
    used = LimitState(0, (0, 1, 5_000, 5_001))
    # At 5,000 the start at 0 counts no longer; the one at 1 does until 5,001.
    assert limits.start(specs, LimitState(0, (0, 1)), 5_000, is_held=False).started == (1, 5_000)
    assert limits.start(specs, used, 5_001, is_held=False).started == (5_000, 5_001, 5_001)
    assert limits.start(specs[:1], used, 6_500, is_held=False).started == (6_500,)
