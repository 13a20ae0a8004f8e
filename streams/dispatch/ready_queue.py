"""The order among jobs that wait for a slot of one queue.

Owns priorities, fairness between users and ageing. Refuses to know whether a job may still run:
entries are keys, and the asker drops those whose job has moved on since.

Within a priority: users take turns (deficit round robin with one job a turn), first come first
served for one user. Between priorities: of every 21 picks 16 look at high first, 4 at medium and 1
at low, so that low is never starved.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from tidemill.schemas.words import PRIORITY_ORDER
from tidemill.streams.job import JobKey

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

    __slots__ = ("back", "lines", "turns")

    def __init__(self) -> None:
        self.lines: dict[str, deque[JobKey]] = {}
        # Of a user: jobs that have waited here before, by number. They come before the line.
        self.back: dict[str, list[tuple[int, JobKey]]] = {}
        self.turns: deque[str] = deque()  # each user of `lines` once

    def pop(self) -> JobKey:
        """The first job of the user whose turn it is. Somebody must be waiting."""
        user_id = self.turns.popleft()
        keys = self.lines[user_id]
        back = self.back.get(user_id) if self.back else None
        if back is None:
            key = keys.popleft()
        else:
            key = heapq.heappop(back)[1]
            if back:
                self.turns.append(user_id)
                return key
            del self.back[user_id]
        if keys:
            self.turns.append(user_id)
        else:
            del self.lines[user_id]
        return key

    def keep(self, is_wanted: Callable[[JobKey], bool]) -> int:
        """Drops the others; how many are left."""
        left = 0
        for user_id, keys in list(self.lines.items()):
            kept = deque(key for key in keys if is_wanted(key))
            back = [entry for entry in self.back.pop(user_id, ()) if is_wanted(entry[1])]
            if back:
                heapq.heapify(back)
                self.back[user_id] = back
            if kept or back:
                self.lines[user_id] = kept
                left += len(kept) + len(back)
            else:
                del self.lines[user_id]
        self.turns = deque(user_id for user_id in self.turns if user_id in self.lines)
        return left


class ReadyQueue:
    """Keys of waiting jobs of one queue. Only `pop` and `keep` take them out."""

    __slots__ = ("_bands", "_length", "_turn")

    def __init__(self) -> None:
        self._bands = [_Band(), _Band(), _Band()]
        self._length = 0
        self._turn = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[JobKey]:
        for band in self._bands:
            for user_id, keys in band.lines.items():
                for _, key in sorted(band.back.get(user_id, ())):
                    yield key
                yield from keys

    def some(self, most: int) -> list[JobKey]:
        """So many of the keys at most, roughly the first ones; they stay."""
        found: list[JobKey] = []
        for band in self._bands:
            for user_id, keys in band.lines.items():
                left = most - len(found)
                if left <= 0:
                    return found
                back = band.back.get(user_id, ())
                found.extend([entry[1] for entry in islice(back, left)])
                found.extend(islice(keys, max(0, most - len(found))))
        return found

    def keep(self, is_wanted: Callable[[JobKey], bool]) -> None:
        """Drops the keys that nobody wants any more."""
        self._length = sum([band.keep(is_wanted) for band in self._bands])

    def push(self, key: JobKey, priority: str, *, number: int | None = None) -> None:
        """Adds a job at the end of its user's line. With the `number` of its acceptance: among
        those that come back here, which are before the line."""
        band = self._bands[BAND_OF[priority]]
        keys = band.lines.get(key[0])
        if keys is None:
            keys = band.lines[key[0]] = deque()
            band.turns.append(key[0])
        if number is None:
            keys.append(key)
        else:
            back = band.back.get(key[0])
            if back is None:
                back = band.back[key[0]] = []
            heapq.heappush(back, (number, key))
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
