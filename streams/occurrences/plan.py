"""A schedule's plan and its instants: the next one, those of a range, how many they are.

Owns the rules for clocks that are moved. Refuses to know the present.

Rules for a zone that moves its clocks:
- **Gap** (clocks go forward; 02:30 does not exist). `next`: due at the first instant after the gap,
  once, however many local times of the pattern are in it. `skip`: not due.
- **Fold** (clocks go back; 02:30 comes twice). `first`, `second`, or `both`.
They hold for every pattern alike. A pattern for every few minutes mostly wants `both`: with `first`
it pauses for the length of the fold. An instant is due once, whatever led to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, assert_never

from tidemill.streams.occurrences.cron import Cron
from tidemill.streams.occurrences.zone import UTC, Zone

Gap = Literal["next", "skip"]
Fold = Literal["first", "second", "both"]

PERIOD_MS_MIN: Final = 1_000  # milliseconds; below, a job that asks for itself is the better way
COUNT_MAX: Final = 10_000  # instants of a range that are counted one by one; then "at least"
LATEST_FACTOR: Final = 4  # how many more than the wanted ones may be looked at, to find the last
_SECOND_MS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Every:
    """An interval: `anchor_ms` plus 1, 2, 3 … periods. No zone moves it."""

    period_ms: int
    anchor_ms: int

    def __post_init__(self) -> None:
        if self.period_ms < PERIOD_MS_MIN:
            raise ValueError(f"every: {self.period_ms} ms is less than {PERIOD_MS_MIN} ms")


@dataclass(frozen=True, slots=True)
class ByCron:
    """A pattern in a zone."""

    cron: Cron
    zone: Zone = UTC
    gap: Gap = "next"
    fold: Fold = "first"


@dataclass(frozen=True, slots=True)
class Plan:
    """When a schedule is due: by its rule, and once more at `first_ms` when that is given."""

    rule: Every | ByCron
    first_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Count:
    """How many instants a range has; `is_exact` False: at least so many."""

    number: int
    is_exact: bool = True


def next_after(plan: Plan, after_ms: int) -> int | None:
    """The first instant later than `after_ms`; None: none comes, or the zone is not known so far.

    A `first_ms` that is also an instant of the rule is one instant.
    """
    found = _next_of_rule(plan.rule, after_ms)
    first = plan.first_ms
    if first is not None and first > after_ms and (found is None or first < found):
        return first
    return found


def between(plan: Plan, after_ms: int, until_ms: int, *, at_most: int) -> list[int]:
    """Instants later than `after_ms`, up to and with `until_ms`: the first `at_most` of them."""
    found: list[int] = []
    for instant in _from(plan, after_ms, until_ms):
        if len(found) >= at_most:
            break
        found.append(instant)
    return found


def latest(plan: Plan, after_ms: int, until_ms: int, *, at_most: int) -> list[int]:
    """The same range: the last `at_most` of its instants, in order."""
    if at_most <= 0 or until_ms <= after_ms:
        return []
    # A part of the end of the range that has enough instants and not many more.
    enough, whole = LATEST_FACTOR * at_most, until_ms - after_ms
    too_short, too_long, span = 0, whole + 1, min(whole, PERIOD_MS_MIN)
    while True:
        found = between(plan, until_ms - span, until_ms, at_most=enough + 1)
        if len(found) > enough:
            too_long = span
        elif len(found) >= at_most or span == whole:
            return found[-at_most:]
        else:
            too_short = span
        is_bounded = too_long <= whole
        span = (too_short + too_long) // 2 if is_bounded else min(whole, 2 * span)


def count(plan: Plan, after_ms: int, until_ms: int) -> Count:
    """How many instants the range has: exactly for intervals, up to COUNT_MAX for patterns."""
    rule, first = plan.rule, plan.first_ms
    match rule:
        case Every():
            number = max(0, _periods(rule, until_ms) - max(0, _periods(rule, after_ms)))
            if first is not None and after_ms < first <= until_ms and not _is_due(rule, first):
                number += 1
            return Count(number)
        case ByCron():
            number = len(between(plan, after_ms, until_ms, at_most=COUNT_MAX + 1))
            return Count(min(number, COUNT_MAX), number <= COUNT_MAX)
        case never:
            assert_never(never)


def _from(plan: Plan, after_ms: int, until_ms: int) -> Iterator[int]:
    instant = next_after(plan, after_ms)
    while instant is not None and instant <= until_ms:
        yield instant
        instant = next_after(plan, instant)


def _next_of_rule(rule: Every | ByCron, after_ms: int) -> int | None:
    match rule:
        case Every():
            return rule.anchor_ms + (max(0, _periods(rule, after_ms)) + 1) * rule.period_ms
        case ByCron():
            found = _next_by_cron(rule, after_ms // _SECOND_MS)
            return None if found is None else found * _SECOND_MS
        case never:
            assert_never(never)


def _periods(rule: Every, instant_ms: int) -> int:
    """Whole periods from the anchor to the instant."""
    return (instant_ms - rule.anchor_ms) // rule.period_ms


def _is_due(rule: Every, instant_ms: int) -> bool:
    passed = instant_ms - rule.anchor_ms
    return passed > 0 and passed % rule.period_ms == 0


def _next_by_cron(rule: ByCron, after: int) -> int | None:
    """Stretch by stretch of one offset: within one, local times and instants go alike."""
    zone = rule.zone
    index = zone.index(after)
    local = after + zone.offsets[index]
    while True:
        _, end = zone.stretch(index)
        matched = rule.cron.next_local(local)
        if matched is None:
            return None
        instant = matched - zone.offsets[index]
        if instant < end:
            if _is_chosen(rule, instant, matched):
                return instant
            local = matched
        elif index == len(zone.changes):
            return None  # nothing is known of the zone from there on
        else:
            index += 1
            resumed = end + zone.offsets[index]  # what clocks show right after the change
            if rule.gap == "next" and matched < resumed:
                return end
            local = resumed - 1


def _is_chosen(rule: ByCron, instant: int, local: int) -> bool:
    """Whether this one of the instants that show `local` is the one that the rule takes."""
    if rule.fold == "both" or not rule.zone.changes:
        return True
    shown = list(rule.zone.instants(local))
    return instant == (shown[0] if rule.fold == "first" else shown[-1])
