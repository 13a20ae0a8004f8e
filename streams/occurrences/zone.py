"""A time zone as numbers: when its offset from UTC changes, and to what.

Owns the table and the questions to it. Refuses to read zone data. Seconds, whole ones: instants are
seconds since the epoch, local times are such seconds plus the offset.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

# No offset is further from UTC, and no change moves a clock by more: Samoa left out a day.
SHIFT_SECONDS_MAX: Final = 26 * 3_600


@dataclass(frozen=True, slots=True)
class Zone:
    """Offsets of one zone. Before the first change `offsets[0]` holds, after the last the last.

    name: as IANA spells it.
    changes: instants of changes, ascending.
    offsets: seconds east of UTC, one more than changes.
    until: from here on nothing is known; later instants have no answer.
    """

    name: str
    changes: tuple[int, ...]
    offsets: tuple[int, ...]
    until: int

    def __post_init__(self) -> None:
        if len(self.offsets) != len(self.changes) + 1:
            raise ValueError(f"{self.name}: {len(self.changes)} changes need one offset more")
        if any(a >= b for a, b in zip(self.changes, self.changes[1:], strict=False)):
            raise ValueError(f"{self.name}: changes must ascend")

    def index(self, instant: int) -> int:
        """Which stretch of one offset the instant is in."""
        return bisect_right(self.changes, instant)

    def stretch(self, index: int) -> tuple[float, int]:
        """First instant of a stretch, and the first behind it."""
        begin = self.changes[index - 1] if index else float("-inf")
        end = self.changes[index] if index < len(self.changes) else self.until
        return begin, end

    def local(self, instant: int) -> int:
        """The local time of an instant."""
        return instant + self.offsets[self.index(instant)]

    def instants(self, local: int) -> Iterator[int]:
        """Every instant at which the clocks show that local time: none in a gap, two in a fold."""
        first = self.index(local - SHIFT_SECONDS_MAX)
        last = self.index(local + SHIFT_SECONDS_MAX)
        for index in range(first, last + 1):
            begin, end = self.stretch(index)
            instant = local - self.offsets[index]
            if begin <= instant < end:
                yield instant


UTC: Final = Zone("UTC", (), (0,), 2**53)
