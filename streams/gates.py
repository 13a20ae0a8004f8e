"""The jobs that a delayed limit holds back: one gate for each (user, type).

Owns their order and what was let through. Refuses to know limits and when a gate opens.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

from streams.job import JobKey

GateName = tuple[str, ...]
"""(user_id, type): whose `delay` limit holds jobs back."""


class Gate:
    """One line, in the order of acceptance."""

    __slots__ = ("_back", "_line", "opens_at", "through")

    def __init__(self) -> None:
        self._line: deque[JobKey] = deque()
        self._back: list[tuple[int, JobKey]] = []  # were let through, and it was too early
        #: Epoch ms of its timer; an earlier one counts no more.
        self.opens_at = 0
        #: Let through, and not started as far as is known: they take up what the limit has free.
        self.through: dict[JobKey, None] = {}

    def __len__(self) -> int:
        return len(self._line) + len(self._back)

    def __iter__(self) -> Iterator[JobKey]:
        for _, key in sorted(self._back):
            yield key
        yield from self._line

    def add(self, key: JobKey, number: int) -> None:
        """Behind the others, unless it was let through before: then where it was."""
        if key in self.through:
            del self.through[key]
            heapq.heappush(self._back, (number, key))
        else:
            self._line.append(key)

    def pop(self) -> JobKey:
        """The first; somebody must be waiting."""
        return heapq.heappop(self._back)[1] if self._back else self._line.popleft()
