"""The jobs that wait for one thing: a limit of a user, a worker that tells of a type.

Owns their order and which of them were woken. Refuses to know what they wait for and when that
comes: the rule that holds them back wakes them.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator

from tidemill.streams.job import JobKey


class WaitList:
    """Those of one `WaitKey`, in the order of acceptance."""

    __slots__ = ("_back", "_line", "through", "wakes_at")

    def __init__(self) -> None:
        self._line: OrderedDict[JobKey, None] = OrderedDict()
        self._back: list[tuple[int, JobKey]] = []  # were woken, and it was too early
        #: Epoch ms of its timer; an earlier one counts no more. 0: it has none.
        self.wakes_at = 0
        #: Woken, and not started as far as is known: they take up what there is.
        self.through: dict[JobKey, None] = {}

    def __len__(self) -> int:
        return len(self._line) + len(self._back)

    def __iter__(self) -> Iterator[JobKey]:
        for _, key in sorted(self._back):
            yield key
        yield from self._line

    def add(self, key: JobKey, number: int) -> None:
        """Behind the others, unless it was woken before: then where it was."""
        if key in self.through:
            del self.through[key]
            heapq.heappush(self._back, (number, key))
        else:
            self._line[key] = None

    def pop(self) -> JobKey:
        """The first; somebody must be waiting."""
        return heapq.heappop(self._back)[1] if self._back else self._line.popitem(last=False)[0]

    def drop(self, key: JobKey) -> None:
        """It waits here no more, woken or not."""
        self._line.pop(key, None)

    def keep(self, is_wanted: Callable[[JobKey], bool]) -> None:
        """Drops the others."""
        self._line = OrderedDict((key, None) for key in self._line if is_wanted(key))
        self._back = [entry for entry in self._back if is_wanted(entry[1])]
        heapq.heapify(self._back)
