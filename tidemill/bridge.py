"""What other threads have to say to an event loop: much of it at a time, with one wake-up.

Owns the way from a thread to a loop's futures. Refuses to know what is said. `asyncio.wrap_future`
wakes the loop for each future: at 2,000 acknowledgements a second that was a fifth of the sender's
processor time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any


class LoopBridge:
    """To one loop; `put` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._is_called = False
        #: Held by who waits for room to send: those who come later stand behind.
        self.queue = asyncio.Lock()

    def promise(self) -> LoopPromise:
        """Something new to wait for; only on the loop."""
        return LoopPromise(self)

    def put(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        """Settle `future` on the loop, soon. One that was cancelled stays cancelled."""
        self._waiting.append((future, result, error))
        # `_settle_all` takes the mark away before it looks: what came before is seen there, what
        # comes after calls again.
        if not self._is_called and not self.loop.is_closed():
            self._is_called = True
            # It may be closed by now: nobody waits any more, and this thread serves others too.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._settle_all)

    def _settle_all(self) -> None:
        self._is_called = False
        while self._waiting:
            future, result, error = self._waiting.popleft()
            if future.done():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)


class LoopBridges:
    """The bridge to the loop that runs now; one at a time."""

    def __init__(self) -> None:
        self._bridge: LoopBridge | None = None

    def promise(self) -> LoopPromise:
        """Something for the running loop to wait for."""
        loop, bridge = asyncio.get_running_loop(), self._bridge
        if bridge is None or bridge.loop is not loop:
            bridge = self._bridge = LoopBridge(loop)
        return bridge.promise()


class LoopPromise:
    """A future of the loop that another thread may settle."""

    __slots__ = ("bridge", "future")

    def __init__(self, bridge: LoopBridge) -> None:
        self.bridge = bridge
        self.future: asyncio.Future[Any] = bridge.loop.create_future()

    def set_result(self, result: Any, /) -> None:
        """As `asyncio.Future.set_result`, from any thread."""
        self.bridge.put(self.future, result, None)

    def set_exception(self, exception: BaseException | None, /) -> None:
        """As `asyncio.Future.set_exception`, from any thread."""
        self.bridge.put(self.future, None, exception)
