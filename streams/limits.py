"""Per-user rate limits: at most N first dispatches of a type in any window, exactly.

Owns the arithmetic of one (user, type). Refuses to know jobs, queues and the clock: `now_ms` comes
in. A window is sliding: a start at `t` counts until `t + window`, not until a calendar border.

Retries, rescues and redrives count as the job that they belong to: only its first dispatch starts.
`skip` counts at acceptance too (`held`), so that a job which was let in always runs.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

from tidemill.streams.job_type import Limit


class LimitState:
    """What one (user, type) has used. Never changed once made."""

    __slots__ = ("held", "started")

    def __init__(self, held: int, started: tuple[int, ...]) -> None:
        self.held = held  # accepted under a skip limit, not dispatched yet
        # Epoch ms of first dispatches, as many as the largest limit; sorted, the newest last.
        self.started = started

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LimitState):
            return NotImplemented
        return self.held == other.held and self.started == other.started

    def __hash__(self) -> int:
        return hash((self.held, self.started))

    def __repr__(self) -> str:
        return f"LimitState({self.held}, {self.started})"


ESTIMATE_MS_MAX: Final = 10 * 365 * 86_400_000  # ms; a later estimate says no more than "not soon"

NOTHING_USED: Final = LimitState(0, ())
NO_BOUND: Final = 1_000_000  # starts at once, where no limit says less


def _recent(state: LimitState, limit: Limit, now_ms: int) -> int:
    """How many starts still count at `now_ms`."""
    started = state.started
    return len(started) - bisect_right(started, now_ms - limit.window_ms)


def _is_far(state: LimitState, limit: Limit) -> bool:
    """Whether all that is known, old or not, is below the limit: nearly always."""
    return state.held + len(state.started) < limit.limit


def is_over_skip(limits: tuple[Limit, ...], state: LimitState, now_ms: int) -> bool:
    """Whether one more job would break a `skip` limit: it is then skipped."""
    for limit in limits:
        if not limit.skips or _is_far(state, limit):
            continue
        if state.held + _recent(state, limit, now_ms) >= limit.limit:
            return True
    return False


def delayed_until(limits: tuple[Limit, ...], state: LimitState, now_ms: int) -> int:
    """The first instant at which one more start breaks no `delay` limit; `now_ms` when none."""
    due = now_ms
    for limit in limits:
        if not limit.delays or _is_far(state, limit):
            continue
        if _recent(state, limit, now_ms) >= limit.limit:
            due = max(due, state.started[-limit.limit] + limit.window_ms)
    return due


def estimated_due(
    limits: tuple[Limit, ...], state: LimitState, now_ms: int, *, ahead: int
) -> int:
    """When a job with `ahead` others before it may start, if each starts as soon as it may."""
    due = delayed_until(limits, state, now_ms)
    for limit in limits:
        if limit.delays:
            rounds = ahead // limit.limit
            due = max(due, delayed_until((limit,), state, now_ms) + rounds * limit.window_ms)
    return min(due, now_ms + ESTIMATE_MS_MAX)


def free_starts(limits: tuple[Limit, ...], state: LimitState, now_ms: int) -> int:
    """How many may start now under the `delay` limits together."""
    free = NO_BOUND
    for limit in limits:
        if limit.delays:
            free = min(free, max(0, limit.limit - _recent(state, limit, now_ms)))
    return free


def hold(state: LimitState) -> LimitState:
    """A job was accepted under a skip limit."""
    return LimitState(state.held + 1, state.started)


def release(state: LimitState) -> LimitState:
    """A held job ended without a start."""
    return LimitState(max(0, state.held - 1), state.started)


def start(
    limits: tuple[Limit, ...], state: LimitState, now_ms: int, *, is_held: bool
) -> LimitState:
    """A job's first dispatch at `now_ms`; forgets what no limit looks at any more.

    The instants are a row of the state topic: those of a user who never comes near a limit of
    1,000 a second must not grow to 1,000. A limit whose window is made longer later counts from
    what the shorter one still saw.
    """
    held = max(0, state.held - 1) if is_held else state.held
    if not limits:
        return LimitState(held, ())
    kept = 0
    for limit in limits:
        kept = max(kept, limit.limit)
    # Sorted, because a partition's clock never goes back.
    started = state.started
    seen_since = now_ms - _longest_ms(limits)
    if started and started[0] <= seen_since:
        started = started[bisect_right(started, seen_since):]
    if len(started) >= kept:
        started = started[len(started) - kept + 1:]
    return LimitState(held, started + (now_ms,))  # noqa: RUF005  # no list on the way


def is_idle(limits: tuple[Limit, ...], state: LimitState, now_ms: int) -> bool:
    """Whether the state says no more than NOTHING_USED: its row may go."""
    seen_since = now_ms - _longest_ms(limits)
    return state.held == 0 and (not state.started or state.started[-1] <= seen_since)


def _longest_ms(limits: tuple[Limit, ...]) -> int:
    """The longest window; 0 without limits."""
    longest = 0
    for limit in limits:
        longest = max(longest, limit.window_ms)
    return longest
