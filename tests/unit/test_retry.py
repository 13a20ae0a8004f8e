"""The delay before the next attempt."""

from __future__ import annotations

import pytest

from tidemill.schemas.wire import BACKOFF_FACTOR_MAX, DELAY_MS_MAX, BackoffSpec
from tidemill.streams.policies.backoff import backoff_ms


@pytest.mark.parametrize(
    ("attempt", "expected_ms"), [(1, 100), (2, 300), (3, 900), (4, 1_000), (5, 1_000), (99, 1_000)]
)
def test_exponential_up_to_the_cap(attempt: int, expected_ms: int) -> None:
    policy = BackoffSpec(base_ms=100, factor=3.0, jitter=0.0, cap_ms=1_000)
    assert backoff_ms(policy, attempt=attempt, seed="s") == expected_ms


def test_jitter_spreads_both_ways_and_never_beyond_the_cap() -> None:
    policy = BackoffSpec(base_ms=1_000, factor=1.0, jitter=0.5, cap_ms=1_200)
    delays = [backoff_ms(policy, attempt=1, seed=str(n)) for n in range(500)]
    assert min(delays) >= 500
    assert max(delays) == 1_200
    assert sum(delay < 1_000 for delay in delays) > 100
    assert sum(delay > 1_000 for delay in delays) > 100


def test_the_same_job_and_attempt_wait_the_same() -> None:
    policy = BackoffSpec(base_ms=1_000, jitter=1.0)
    assert backoff_ms(policy, attempt=2, seed="u/j/1") == backoff_ms(
        policy, attempt=2, seed="u/j/1"
    )
    assert backoff_ms(policy, attempt=2, seed="u/j/1") != backoff_ms(
        policy, attempt=2, seed="u/j/2"
    )


@pytest.mark.parametrize("jitter", [0.0, 1.0])
@pytest.mark.parametrize("base_ms", [0, 1, DELAY_MS_MAX])
def test_the_widest_policy_stays_finite(base_ms: int, jitter: float) -> None:
    policy = BackoffSpec(
        base_ms=base_ms, factor=BACKOFF_FACTOR_MAX, jitter=jitter, cap_ms=DELAY_MS_MAX
    )
    for attempt in (1, 2, 63, 64, 65, 100, 10_000):
        assert 0 <= backoff_ms(policy, attempt=attempt, seed="s") <= DELAY_MS_MAX


def test_a_factor_beyond_floats_is_the_cap() -> None:
    policy = BackoffSpec.model_construct(base_ms=1, factor=1e300, jitter=0.0, cap_ms=77)
    assert backoff_ms(policy, attempt=5, seed="s") == 77
