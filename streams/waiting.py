"""The order among jobs that wait for a slot of one queue.

Owns priorities, fairness between users and ageing. Refuses to know whether a job may still run:
entries are keys, and the asker drops those whose job has moved on since.

Within a priority: users take turns (deficit round robin with one job a turn), first come first
served for one user. Between priorities: of every 21 picks 16 look at high first, 4 at medium and 1
at low, so that low is never starved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from schemas.words import PRIORITY_ORDER
from streams.job import JobKey

_HIGH_FIRST: Final = (0, 1, 2)
_MEDIUM_FIRST: Final = (1, 0, 2)
_LOW_FIRST: Final = (2, 0, 1)
# Of a tuple whose type gives its length compiled code would make a copy at each pick.
TURNS: Final[tuple[tuple[int, ...], ...]] = (
    ((_HIGH_FIRST,) * 4 + (_MEDIUM_FIRST,)) * 4 + (_LOW_FIRST,)
)
"""Which priority each pick looks at first: 16 high, 4 medium, 1 low, spread evenly."""

BAND_OF: Final[dict[str, int]] = {name.value: band for band, name in enumerate(PRIORITY_ORDER)}


class _Band:
    """The waiting jobs of one priority: whose turn it is, and the line of each user."""

    __slots__ = ("lines", "turns")

    def __init__(self) -> None:
        self.lines: dict[str, deque[JobKey]] = {}
        self.turns: deque[str] = deque()  # each user of `lines` once

    def pop(self) -> JobKey:
        """The first job of the user whose turn it is. Somebody must be waiting."""
        user_id = self.turns.popleft()
        keys = self.lines[user_id]
        key = keys.popleft()
        if keys:
            self.turns.append(user_id)
        else:
            del self.lines[user_id]
        return key


class WaitingQueue:
    """Keys of waiting jobs of one queue. Never shrinks on its own: `pop` takes them out."""

    __slots__ = ("_bands", "_length", "_turn")

    def __init__(self) -> None:
        self._bands = [_Band(), _Band(), _Band()]
        self._length = 0
        self._turn = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[JobKey]:
        for band in self._bands:
            for keys in band.lines.values():
                yield from keys

    def push(self, key: JobKey, priority: str, *, is_first: bool = False) -> None:
        """Adds a job at the end of its user's line, or at its head (`is_first`)."""
        band = self._bands[BAND_OF[priority]]
        keys = band.lines.get(key[0])
        if keys is None:
            keys = band.lines[key[0]] = deque()
            band.turns.append(key[0])
        if is_first:
            keys.appendleft(key)
        else:
            keys.append(key)
        self._length += 1

    def pop(self) -> JobKey | None:
        """The next job, None when nobody waits."""
        if self._length == 0:
            return None
        order = TURNS[self._turn]
        self._turn = (self._turn + 1) % len(TURNS)
        for index in order:
            band = self._bands[index]
            if band.lines:
                self._length -= 1
                return band.pop()
        return None
