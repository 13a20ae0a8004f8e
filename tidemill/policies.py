"""Policies as users write them: durations, backoff, limits.

Owns the spelling and its checks. Refuses to apply them: they become `tidemill.schemas.wire` specs,
which the ledger follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from tidemill.agents.worker.durations import DURATION_SECONDS_MAX, parse
from tidemill.agents.worker.durations import Duration as Duration  # users' modules know it here
from tidemill.agents.worker.durations import seconds_of as seconds_of
from tidemill.agents.worker.errors import JobDefinitionError
from tidemill.schemas.wire import CONCURRENCY_MAX, BackoffSpec, ConcurrencySpec, LimitSpec

LIMIT_MAX: Final = 1_000  # jobs in a window; the ledger keeps an instant for each
def _is_between(value: object, low: float, high: float) -> bool:
    """Whether it is a number from `low` to `high`; people pass texts too."""
    return isinstance(value, int | float) and low <= value <= high


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before the next attempt: min(cap, base * factor**(n-1)), then jitter.

    Make one with `exponential` or `fixed`.
    """

    base_seconds: float
    factor: float
    jitter: float
    cap_seconds: float

    @classmethod
    def exponential(
        cls,
        base: Duration = "2s",
        *,
        factor: float = 2.0,
        jitter: float = 0.2,
        cap: Duration = "5min",
    ) -> Backoff:
        """`jitter` is the share by which a delay may be longer or shorter, 0 to 1."""
        if not _is_between(factor, 1, 100):
            raise JobDefinitionError(f"backoff: factor={factor!r} must be a number from 1 to 100")
        if not _is_between(jitter, 0, 1):
            raise JobDefinitionError(f"backoff: jitter={jitter!r} must be a number from 0 to 1")
        base_seconds = seconds_of(base, "backoff: base")
        cap_seconds = seconds_of(cap, "backoff: cap")
        if cap_seconds < base_seconds:
            raise JobDefinitionError(
                f"backoff: cap={cap!r} is shorter than base={base!r}; swap them or leave cap out"
            )
        return cls(base_seconds, float(factor), float(jitter), cap_seconds)

    @classmethod
    def fixed(cls, delay: Duration, *, jitter: float = 0.0) -> Backoff:
        """The same delay before every attempt."""
        seconds = seconds_of(delay, "backoff: delay")
        return cls.exponential(seconds, factor=1.0, jitter=jitter, cap=seconds)

    def spec(self) -> BackoffSpec:
        """As the ledger reads it."""
        return BackoffSpec(
            base_ms=round(self.base_seconds * 1000),
            factor=self.factor,
            jitter=self.jitter,
            cap_ms=round(self.cap_seconds * 1000),
        )


@dataclass(frozen=True, slots=True, init=False)
class RateLimit:
    """At most N jobs of this type per user in any window: `RateLimit("10/min", by="user")`.

    over: "skip" ends a job that is too many as `skipped` with reason `rate_limited`, "delay" lets
    it wait until the window has room.
    """

    limit: int
    window_seconds: float
    by: Literal["user"]
    over: Literal["skip", "delay"]

    def __init__(
        self, rate: str, *, by: str = "user", over: Literal["skip", "delay"] = "skip"
    ) -> None:
        limit, window_seconds = _parse_rate(rate)
        if by != "user":
            raise JobDefinitionError(f"RateLimit({rate!r}): by={by!r} is not known; use by='user'")
        if over not in ("skip", "delay"):
            raise JobDefinitionError(
                f"RateLimit({rate!r}): over={over!r} is not known; use 'skip' or 'delay'"
            )
        object.__setattr__(self, "limit", limit)
        object.__setattr__(self, "window_seconds", window_seconds)
        object.__setattr__(self, "by", "user")
        object.__setattr__(self, "over", over)

    def spec(self) -> LimitSpec:
        """As the ledger reads it."""
        return LimitSpec(
            limit=self.limit,
            window_ms=round(self.window_seconds * 1000),
            over=self.over,
            by=self.by,
        )


@dataclass(frozen=True, slots=True, init=False)
class Concurrency:
    """At most N jobs of this type per user at once: `Concurrency(2, by="user")`. The others wait.

    A job that waits for its next attempt takes up nothing.
    """

    limit: int
    by: Literal["user"]

    def __init__(self, limit: int, *, by: str = "user") -> None:
        if type(limit) is not int or not 1 <= limit <= CONCURRENCY_MAX:
            raise JobDefinitionError(
                f"Concurrency({limit!r}): the number must be from 1 to {CONCURRENCY_MAX}"
            )
        if by != "user":
            raise JobDefinitionError(f"Concurrency({limit}): by={by!r} is not known; use by='user'")
        object.__setattr__(self, "limit", limit)
        object.__setattr__(self, "by", "user")

    def spec(self) -> ConcurrencySpec:
        """As the ledger reads it."""
        return ConcurrencySpec(limit=self.limit, by=self.by)


def _parse_rate(rate: object) -> tuple[int, float]:
    form = 'write N/window, such as "1/h", "10/min" or "100/5min"'
    if not isinstance(rate, str) or rate.count("/") != 1:
        raise JobDefinitionError(f"RateLimit({rate!r}) is no rate; {form}")
    count, _, window = rate.partition("/")
    if not count.strip().isascii() or not count.strip().isdigit():
        raise JobDefinitionError(f"RateLimit({rate!r}): {count!r} is no whole number; {form}")
    limit = int(count) if len(count) < 10 else LIMIT_MAX + 1
    if not 1 <= limit <= LIMIT_MAX:
        raise JobDefinitionError(
            f"RateLimit({rate!r}): the number must be from 1 to {LIMIT_MAX}; for more, use a "
            "shorter window"
        )
    seconds = parse(window, f"RateLimit({rate!r}): window", is_unit_enough=True)
    if not 0.001 <= seconds <= DURATION_SECONDS_MAX:
        raise JobDefinitionError(f"RateLimit({rate!r}): the window must be from 1ms to a year")
    return limit, seconds
