"""Looks into ClickHouse for jobs that had ended long before somebody waits for them.

Owns a few threads and their questions. Refuses to know the topic: it is the truth and is read
meanwhile, so an answer that does not come holds nobody up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

from tidemill.agents import clocks
from tidemill.agents.runtime.forks import tell_in_copies
from tidemill.completed import CompletedJob
from tidemill.completions import Waiter
from tidemill.history import find_completed
from tidemill.sql import ANSWER_SECONDS, SqlError

THREADS: Final = 4  # questions at once; each costs ClickHouse a look at an index
SECONDS_MIN: Final = 0.1  # a socket takes no time-out of zero


class LookingBack:
    """Asks in the background. `tell` is called on a thread of its own."""

    def __init__(self, clickhouse: str, tell: Callable[[Waiter, CompletedJob], None]) -> None:
        self._clickhouse = clickhouse
        self._tell = tell
        self.start_anew()
        tell_in_copies(self)

    def start_anew(self) -> None:
        """At the beginning, and in a copy of the process, where its threads are not."""
        self._asked: SimpleQueue[tuple[Waiter, float] | None] = SimpleQueue()
        self._threads = 0

    def ask(self, waiter: Waiter, seconds: float) -> None:
        """Look for the end of a job within `seconds`; nothing when it is being looked for."""
        if waiter.is_asked:
            return
        waiter.is_asked = True
        self._asked.put((waiter, clocks.monotonic() + min(seconds, ANSWER_SECONDS)))
        if self._threads < THREADS:
            self._threads += 1
            threading.Thread(target=self._work, name="tidemill-history", daemon=True).start()

    def close(self) -> None:
        """Ask nothing more; what is under way is left alone."""
        for _ in range(self._threads):
            self._asked.put(None)

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            waiter, deadline = asked
            if not waiter.future.done():
                self._look(waiter, max(SECONDS_MIN, deadline - clocks.monotonic()))
            waiter.is_asked = False

    def _look(self, waiter: Waiter, seconds: float) -> None:
        for run in (waiter.run, waiter.run + 1):  # the first may be that of an earlier refusal
            try:
                found = find_completed(
                    self._clickhouse, *waiter.key, run,
                    since_ms=waiter.since_ms, timeout_seconds=seconds,
                )
            except SqlError:
                return
            if found is None:
                return
            if waiter.wants(found.model_dump()):
                self._tell(waiter, found)
                return
