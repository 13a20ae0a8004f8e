"""The ledger's clock: epoch time that never goes back and never stands still.

Owns what time is where this machine's clock is behind an instant that was used already: the clock
was set back, or a machine ahead of it decided before. Refuses to know what time is for.

A partition's instant never goes back (`tidemill.streams.store.position`). If it stood still until
this machine's clock has caught up, then for as long no retry, no limit's window and no silence of a
dead worker would come to its end. So it goes on at half of the speed: a wait takes at most twice as
long, and after twice the difference both clocks agree again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

CATCHING_UP: Final = 0.5  # seconds that pass in a second, while this machine's clock is behind
TOLD_SECONDS: Final = 2.0  # behind: less is what clocks of machines differ by


class LedgerClock:
    """Epoch time of one process. From any thread."""

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._lock = threading.Lock()
        self._last = 0.0  # epoch seconds, the latest that was told
        self._last_at = steady()
        self._is_told = False

    def now(self) -> float:
        """Epoch seconds."""
        with self._lock:
            wall, steady = self._wall(), self._steady()
            passed = max(0.0, steady - self._last_at)
            self._last = max(wall, self._last + passed * CATCHING_UP)
            self._last_at = steady
            behind = self._last - wall
            self._tell(behind)
            return self._last

    def now_ms(self) -> int:
        """Epoch milliseconds."""
        return int(self.now() * 1000)

    def note(self, used_ms: int) -> None:
        """An instant that was used already: time is not before it."""
        with self._lock:
            if used_ms / 1000 > self._last:
                self._last, self._last_at = used_ms / 1000, self._steady()

    def _tell(self, behind: float) -> None:
        if behind > TOLD_SECONDS and not self._is_told:
            self._is_told = True
            logger.warning(
                "this machine's clock is %.0f s behind instants that were used already: it was set "
                "back, or another machine's is ahead; time goes on at half of the speed until they "
                "agree: synchronise the clocks (NTP)", behind,
            )
        elif behind <= 0 and self._is_told:
            self._is_told = False
            logger.info("this machine's clock has caught up")
