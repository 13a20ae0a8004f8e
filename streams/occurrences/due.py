"""What is due: ids of occurrences, their jitter, and what runs after a time in which nothing did.

Owns the id, the hash, and the choice among missed instants. Refuses to know overlap, and who runs
it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from tidemill.streams.occurrences.plan import Count, Plan, count, latest

CatchUp = Literal["none", "last", "all"]

CATCH_UP_MAX: Final = 1_000  # missed instants that run; the rest is one event with its count
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Due:
    """What an instant of the clock brings.

    run: instants whose jobs are asked for now, in order.
    late: how many of `run`, from its beginning, were missed: their ticks are catch-up.
    skipped: missed instants that do not run.
    """

    run: tuple[int, ...]
    late: int
    skipped: Count


def due(
    plan: Plan, last_ms: int, now_ms: int, *, catch_up: CatchUp, grace_ms: int,
    at_most: int = CATCH_UP_MAX,
) -> Due:
    """Instants later than `last_ms` (the last that was dealt with) up to `now_ms`.

    An instant of at most `grace_ms` ago is on time and runs whatever `catch_up` says; older ones
    were missed. Of them `none` run, or the `last` one unless one on time follows, or `all`: the
    latest `at_most`.
    """
    border = max(last_ms, now_ms - grace_ms - 1)
    on_time = latest(plan, border, now_ms, at_most=at_most)
    wanted = {"none": 0, "last": 0 if on_time else 1, "all": at_most}[catch_up]
    missed = latest(plan, last_ms, border, at_most=wanted)
    unrun = count(plan, last_ms, missed[0] - 1 if missed else border)
    crowded = count(plan, border, on_time[0] - 1) if on_time else Count(0)
    skipped = Count(unrun.number + crowded.number, unrun.is_exact and crowded.is_exact)
    return Due((*missed, *on_time), len(missed), skipped)


def occurrence_id(name: str, instant_ms: int) -> str:
    """`<name>@<UTC instant>`, such as digest.daily@2026-11-28T08:00:00Z; ms where there are any."""
    instant = _EPOCH + timedelta(milliseconds=instant_ms)
    precision = "milliseconds" if instant_ms % 1_000 else "seconds"
    return f"{name}@{instant.isoformat(timespec=precision).removesuffix('+00:00')}Z"


def jitter_ms(name: str, instant_ms: int, max_ms: int) -> int:
    """How much later than its instant an occurrence runs: 0 to `max_ms`, the same every time."""
    return zlib.crc32(f"{name}@{instant_ms}".encode()) % (max_ms + 1)
