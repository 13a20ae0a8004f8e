"""The virtual clock, and the event loop of handlers that goes by it.

Owns virtual time, and when a loop has nothing to do at its present instant. Refuses to know what
runs on the loop and who moves the clock.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from asyncio import events, tasks
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

# Seconds of real time that a handler may wait for a socket or a thread, which know no virtual time,
# before its job counts as one that waits for the clock.
REAL_WAIT_SECONDS: Final = 5.0
ROUNDING_MS: Final = 1e-6  # of a timer's instant: floats of seconds are not whole milliseconds


class Clock:
    """Virtual time: it moves when it is told to."""

    def __init__(self, start_ms: int) -> None:
        #: Epoch ms.
        self.now_ms = start_ms
        self._start_ms = start_ms - 1_000  # so that no instant is 0, which says "not yet"

    def seconds(self) -> float:
        """Of a clock that never goes back, for durations."""
        return (self.now_ms - self._start_ms) / 1000

    def ms_of(self, seconds: float) -> int:
        """The first whole millisecond at which `seconds` has come."""
        return self._start_ms + math.ceil(seconds * 1000 - ROUNDING_MS)


class _Selector(selectors.DefaultSelector):
    """It waits for real things alone: without any, the loop stops in place of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.on_idle: Callable[[], None] = lambda: None
        self.has_threads: Callable[[], bool] = lambda: False
        #: It has waited in vain: what is open now, such as a kept connection, brings no news.
        self.is_silent = False

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if found or timeout is None or timeout > 0:
            has_sockets = len(self.get_map()) > 1  # one is the loop's own
            if not found and not self.is_silent and (has_sockets or self.has_threads()):
                found = super().select(REAL_WAIT_SECONDS)
                self.is_silent = not found
            if not found:
                self.on_idle()
        if found:
            self.is_silent = False
        return found

    def register(self, *args: Any) -> Any:
        self.is_silent = False
        return super().register(*args)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its timers go by a virtual clock."""

    def __init__(self, clock: Clock) -> None:
        self._virtual = clock
        selector = self._waits = _Selector()
        super().__init__(selector)
        selector.on_idle = self.stop
        selector.has_threads = lambda: self._calls > 0
        self._calls = 0

    def time(self) -> float:
        return self._virtual.seconds()

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> Any:
        future = super().run_in_executor(executor, func, *args)
        self._calls += 1
        self._waits.is_silent = False
        future.add_done_callback(self._returned)
        return future

    def _returned(self, _: object) -> None:
        self._calls -= 1

    def run_until_idle(self) -> None:
        """Everything that can go on without the clock's moving."""
        with outside_of_loops():
            self.run_forever()

    def next_due_ms(self) -> int | None:
        """Epoch ms of the first timer; None without any."""
        timers = [handle.when() for handle in self._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        return self._virtual.ms_of(min(timers)) if timers else None


@contextmanager
def outside_of_loops() -> Iterator[None]:
    """The loop of an `async def` test stands aside: handlers have one of their own, or none."""
    outer = events._get_running_loop()
    if outer is None:
        yield
        return
    task = asyncio.current_task(outer)
    if task is not None:
        tasks._leave_task(outer, task)
    events._set_running_loop(None)
    try:
        yield
    finally:
        events._set_running_loop(outer)
        if task is not None:
            tasks._enter_task(outer, task)
