"""The pulse of a worker: that its loop turns, and which attempts it began last.

Owns a small piece of memory that another process of ours can read while this one cannot run any
Python. Refuses to know who reads it and what follows from it.

It is written for each attempt, so it is a number in a ring and nothing more: 8 bytes, no call of
the system. The order matters: a mark is written before its handler is called, so whoever sees the
loop stand still finds the mark of whatever made it stand still.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Final

from tidemill.agents import clocks

# Attempts of which the ledger may not know yet that they began: a start is told after half a
# second, so this holds at 8,000 quick jobs a second.
RING: Final = 4_096
_NUMBER_BITS: Final = 32  # the mark of the attempt is below, the number of its handler above
_NUMBER: Final = 8  # bytes of one number
_TIMES: Final = 2 * _NUMBER  # the last turn and the longest time-out, as doubles
NOT_SHARED: Final = -1
SIZE: Final = _TIMES + _NUMBER + RING * _NUMBER

# The loop stands still from here on, as far as others are told. Short of the time after which a
# group forgets a member, so that the ledger knows before the member's records come again.
STILL_SECONDS: Final = 4.0
# The loop itself sees a shorter pause as one: what has not begun when others are told that it has
# not must not begin afterwards.
PAUSE_SECONDS: Final = 3.0
NAMED_MAX: Final = 5  # handlers named in a line


def open_memory() -> int:
    """A descriptor of memory for one pulse, all zero."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("tidemill-pulse")
    else:
        import tempfile  # costs the stand-in a megabyte

        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, SIZE)
    return descriptor


class Pulse:
    """One worker's. `descriptor` is of memory that others watch; -1: nobody else does."""

    def __init__(self, descriptor: int = NOT_SHARED) -> None:
        self.descriptor = descriptor
        view = memoryview(mmap.mmap(descriptor, SIZE))
        self._times = view[:_TIMES].cast("d")
        self._ring = view[_TIMES:].cast("Q")  # how many were begun, then the ring
        self._begun = 0
        self._longest_ms = 0
        if not self._times[0]:
            self.turn()

    # -- the worker ----------------------------------------------------------------------------

    def turn(self) -> None:
        """The loop turns."""
        self._times[0] = clocks.monotonic()

    def begin(self, mark: int, handler: int, timeout_ms: int) -> None:
        """The handler with this number is about to be called for the attempt with this mark."""
        begun = self._begun
        self._ring[1 + begun % RING] = handler << _NUMBER_BITS | mark
        self._begun = self._ring[0] = begun + 1
        if timeout_ms > self._longest_ms:
            self._longest_ms = timeout_ms
            self._times[1] = timeout_ms / 1000

    @property
    def is_paused(self) -> bool:
        """Whether the loop has stood still until now, so that nothing that waited may begin."""
        return clocks.monotonic() - self._times[0] > PAUSE_SECONDS

    # -- who watches ---------------------------------------------------------------------------

    @property
    def turned_at(self) -> float:
        """Monotonic seconds of the loop's last turn, the same clock for all processes."""
        return self._times[0]

    @property
    def longest_seconds(self) -> float:
        """The longest time-out of an attempt that began here."""
        return self._times[1]

    def marks(self) -> list[int]:
        """Marks of the attempts that began last."""
        mask = (1 << _NUMBER_BITS) - 1
        return sorted({number & mask for number in self._last(RING)})

    def handlers(self, most: int, names: Sequence[str]) -> list[str]:
        """Which handlers were called last, the latest first."""
        numbers = [number >> _NUMBER_BITS for number in self._last(RING)]
        found = dict.fromkeys(names[number] for number in numbers if number < len(names))
        return list(found)[:most]

    def latest(self, names: Sequence[str]) -> str:
        """The same for a line of a log; `names` as their numbers go."""
        return ", ".join(self.handlers(NAMED_MAX, names)) or "none"

    def _last(self, most: int) -> list[int]:
        begun = self._ring[0]
        return [self._ring[1 + (begun - 1 - back) % RING] for back in range(min(begun, most))]
