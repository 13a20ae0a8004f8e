"""Per-user rate limits: at most N first dispatches of a type in any window, exactly.

Owns the arithmetic of one (user, type). Refuses to know jobs, queues and the clock: `now_ms` comes
in. A window is sliding: a start at `t` counts until `t + window`, not until a calendar border.

Retries, rescues and redrives count as the job that they belong to: only its first dispatch starts.
`skip` counts at acceptance too (`held`), so that a job which was let in always runs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple

from schemas.wire import LimitSpec


class LimitState(NamedTuple):
    """What one (user, type) has used. `started` is sorted, the newest last."""

    held: int  # accepted under a skip limit, not dispatched yet
    started: tuple[int, ...]  # epoch ms of first dispatches, as many as the largest limit


ESTIMATE_MS_MAX: Final = 10 * 365 * 86_400_000  # ms; a later estimate says no more than "not soon"

NOTHING_USED: Final = LimitState(0, ())


def _recent(state: LimitState, window_ms: int, now_ms: int) -> int:
    """How many starts still count at `now_ms`."""
    count = 0
    for started_at in reversed(state.started):
        if started_at <= now_ms - window_ms:
            break
        count += 1
    return count


def is_over_skip(limits: Sequence[LimitSpec], state: LimitState, now_ms: int) -> bool:
    """Whether one more job would break a `skip` limit: it is then skipped."""
    return any(
        limit.over == "skip"
        and state.held + _recent(state, limit.window_ms, now_ms) >= limit.limit
        for limit in limits
    )


def delayed_until(limits: Sequence[LimitSpec], state: LimitState, now_ms: int) -> int:
    """The first instant at which one more start breaks no `delay` limit; `now_ms` when none."""
    due = now_ms
    for limit in limits:
        if limit.over == "delay" and _recent(state, limit.window_ms, now_ms) >= limit.limit:
            due = max(due, state.started[-limit.limit] + limit.window_ms)
    return due


def estimated_due(
    limits: Sequence[LimitSpec], state: LimitState, now_ms: int, *, ahead: int
) -> int:
    """When a job with `ahead` others before it may start, if each starts as soon as it may."""
    due = delayed_until(limits, state, now_ms)
    for limit in limits:
        if limit.over == "delay":
            rounds = ahead // limit.limit
            due = max(due, delayed_until((limit,), state, now_ms) + rounds * limit.window_ms)
    return min(due, now_ms + ESTIMATE_MS_MAX)


def free_starts(limits: Sequence[LimitSpec], state: LimitState, now_ms: int) -> int:
    """How many may start now under the `delay` limits together."""
    return min(
        (
            max(0, limit.limit - _recent(state, limit.window_ms, now_ms))
            for limit in limits
            if limit.over == "delay"
        ),
        default=1_000_000,
    )


def hold(state: LimitState) -> LimitState:
    """A job was accepted under a skip limit."""
    return LimitState(state.held + 1, state.started)


def release(state: LimitState) -> LimitState:
    """A held job ended without a start."""
    return LimitState(max(0, state.held - 1), state.started)


def start(
    limits: Sequence[LimitSpec], state: LimitState, now_ms: int, *, is_held: bool
) -> LimitState:
    """A job's first dispatch at `now_ms`; forgets what no limit looks at any more.

    The instants are a row of the state topic: those of a user who never comes near a limit of
    1,000 a second must not grow to 1,000. A limit whose window is made longer later counts from
    what the shorter one still saw.
    """
    held = max(0, state.held - 1) if is_held else state.held
    if not limits:
        return LimitState(held, ())
    kept = max(limit.limit for limit in limits)
    longest = max(limit.window_ms for limit in limits)
    # Sorted, because a partition's clock never goes back.
    over = bisect_right(state.started, now_ms - longest)
    return LimitState(held, (*state.started[over:], now_ms)[-kept:])


def is_idle(limits: Sequence[LimitSpec], state: LimitState, now_ms: int) -> bool:
    """Whether the state says no more than NOTHING_USED: its row may go."""
    longest = max((limit.window_ms for limit in limits), default=0)
    return state.held == 0 and (not state.started or state.started[-1] <= now_ms - longest)
