"""How many jobs of a queue one ledger partition keeps dispatched at once.

Owns the window's growth and shrinking. Refuses to know workers by name: it sees slots, outcomes
and returns. The backlog stays in the ledger, where priority and fairness still act on it; only
what the window lets through is written to a ready topic.

The window starts at twice the workers' slots, grows while it is used up and jobs start quickly,
and shrinks when a worker hands jobs back. After a hand-back nothing is sent until a slot is known
to be free: an outcome came, or a heartbeat says so.
"""

from __future__ import annotations

from typing import Final

START_PER_SLOT: Final = 2  # jobs in flight per slot at first
SIZE_MAX: Final = 4_000  # jobs in flight per queue and partition; bounds what a crash redelivers
GROW_EVERY_MS: Final = 100  # ms between two growths
GROW_FACTOR: Final = 1.25
# ms from dispatch to start below which the window may grow: half of what makes a worker hand a job
# back. A smaller one keeps groups small on a busy machine, and small groups keep it busy.
QUICK_START_MS: Final = 500
SHRINK_EVERY_MS: Final = 500  # ms between two shrinks
SHRINK_FACTOR: Final = 0.6


class Window:
    """The window of one queue in one partition. Volatile: a restore starts it anew."""

    __slots__ = ("_changed_at", "_is_blocked", "_waited_ms", "_was_full", "size", "slots")

    def __init__(self) -> None:
        self.slots = 0
        self.size = 0.0
        self._changed_at = 0
        self._was_full = False
        self._is_blocked = False
        self._waited_ms = 0

    def set_slots(self, slots: int, *, free: int) -> None:
        """What the workers' heartbeats say of this queue."""
        if slots != self.slots:
            self.slots = slots
            self.size = float(slots * START_PER_SLOT)
        if free > 0:
            self._is_blocked = False

    def allowance(self, in_flight: int) -> int:
        """How many more jobs may be dispatched now."""
        if self.slots == 0 or self._is_blocked:
            return 0
        allowed = int(self.size) - in_flight
        if allowed <= 0:
            self._was_full = True
            return 0
        return allowed

    def note_outcome(self, waited_ms: int, now_ms: int) -> None:
        """An attempt ended; it had waited `waited_ms` between its dispatch and its start."""
        self._is_blocked = False
        if waited_ms > self._waited_ms:
            self._waited_ms = waited_ms
        if now_ms - self._changed_at < GROW_EVERY_MS:
            return
        if self._was_full and self._waited_ms < QUICK_START_MS:
            self.size = min(float(SIZE_MAX), self.size * GROW_FACTOR + 1)
        self._changed_at = now_ms
        self._was_full = False
        self._waited_ms = 0

    def note_returned(self, now_ms: int) -> None:
        """A worker handed a job back: it was sent more than it could start."""
        self._is_blocked = True
        if now_ms - self._changed_at >= SHRINK_EVERY_MS:
            self.size = max(1.0, self.size * SHRINK_FACTOR)
            self._changed_at = now_ms
