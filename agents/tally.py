"""How many lines of one kind reach the log in a second: the first ones, and a count of the others.

Owns the count. Refuses to know what a line says. When something that every job needs is away, all
jobs fail alike: a line for each would take the time of what works and hide everything else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from tidemill.agents import clocks

LINES_A_SECOND: Final = 5  # of one kind
KIND_SECONDS: Final = 1.0
KINDS_MAX: Final = 1_000  # kinds of one second that are told apart; more are no kinds

K = TypeVar("K")


class _Count:
    """What was seen of one kind since an instant."""

    __slots__ = ("since", "total")

    def __init__(self, since: float) -> None:
        self.since = since
        self.total = 0


class Tally(Generic[K]):
    """Counts by kind; used from the loop and from handlers' threads."""

    def __init__(self, clock: Callable[[], float] = clocks.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[K, _Count] = {}

    def count(self, kind: K) -> int:
        """How many of this kind there were of late, this one included."""
        with self._lock:
            count = self._counts.get(kind)
            if count is None:
                if len(self._counts) >= KINDS_MAX:
                    return LINES_A_SECOND + 1
                count = self._counts[kind] = _Count(self._clock())
            count.total += 1
            return count.total

    def untold(self, *, is_last: bool = False) -> list[tuple[K, int, float]]:
        """Kinds of which more was counted than told: (kind, how many more, seconds it took).

        A kind begins anew afterwards. Call it often; `is_last` at the end.
        """
        if not self._counts:
            return []
        with self._lock:
            now = self._clock()
            over = [
                (kind, count) for kind, count in self._counts.items()
                if is_last or now - count.since >= KIND_SECONDS
            ]
            for kind, _ in over:
                del self._counts[kind]
        return [
            (kind, count.total - LINES_A_SECOND, now - count.since)
            for kind, count in over if count.total > LINES_A_SECOND
        ]
