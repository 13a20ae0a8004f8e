"""How many jobs of a pool one ledger partition keeps dispatched at once.

Owns the limit's growth and shrinking. Refuses to know workers by name: it sees slots, starts,
outcomes and returns. The backlog stays in the ledger, where priority and fairness still act on it;
only what the limit lets through is written to a ready topic.

All partitions send to the same slots and none knows what the others have out. So a limit starts at
its share of twice the slots: enough for jobs that run longer than it takes to send the next one. It
doubles, and later grows by a quarter, while it is used up and short jobs start quickly. It shrinks
while jobs start late, when a worker hands them back, and towards what is used of it: the next jobs
may be slower. Whoever is alone need not wait for growth: what was out when the workers said that
slots are free, and as much more as they said, may be out. After a hand-back nothing is sent until a
slot is known to be free: an outcome came, or a heartbeat says so.
"""

from __future__ import annotations

from typing import Final

START_PER_SLOT: Final = 2  # jobs in flight per slot at first, of all partitions together
START_SHARE_MIN: Final = 0.25  # jobs per slot at first of one partition, however many there are
SIZE_MAX: Final = 4_000  # jobs in flight per pool and partition; bounds what a crash redelivers
GROW_EVERY_MS: Final = 100  # ms between two growths
GROW_FACTOR_FIRST: Final = 2.0  # until it was too large once
GROW_FACTOR: Final = 1.25
# ms from dispatch to start below which the limit may grow: half of what makes a worker hand a job
# back. A smaller one keeps groups small on a busy machine, and small groups keep it busy.
QUICK_START_MS: Final = 500
SHORT_RUN_MS: Final = 200  # ms that a job runs on average below which the limit may grow
# ms from dispatch to start, of the quickest one, above which it shrinks: that is a line of its own,
# where no priority acts. Never below where it started: another machine's clock may be off.
LATE_START_MS: Final = 1_000
SHRINK_EVERY_MS: Final = 500  # ms between two shrinks
SHRINK_FACTOR: Final = 0.6
USE_MS: Final = 1_000  # ms of which it remembers how much of it was used
IDLE_MS: Final = 3_000  # ms without a look, though each second has one while somebody waits
LONG_RUN_MS: Final = 10_000  # ms that an attempt counts for which is heard of while it runs
NEVER_MS: Final = 2**62


class InFlightLimit:
    """The limit of one pool in one partition. Volatile: a restore starts it anew."""

    __slots__ = (
        "_asked_at",
        "_ends",
        "_heartbeat_version",
        "_is_blocked",
        "_is_told",
        "_least_wait_ms",
        "_level",
        "_longest_wait_ms",
        "_looked_at",
        "_most_out",
        "_run_ms",
        "_shrunk_at",
        "_start",
        "_told_free",
        "_was_full",
        "_was_too_large",
        "_watched_at",
        "size",
        "slots",
    )

    def __init__(self) -> None:
        self.slots = 0
        self.size = 0.0
        self._start = 0.0
        self._heartbeat_version = -1
        self._told_free = 0
        self._is_told = False  # the workers have spoken since the last look
        self._level = 0  # jobs that may be out, by what they said; 0: they said nothing
        self._looked_at = 0
        self._shrunk_at = 0
        self._asked_at = 0  # when `allowance` was
        self._watched_at = 0  # since when `_most_out` counts
        self._most_out = 0
        self._was_full = False
        self._was_too_large = False
        self._is_blocked = False
        self._least_wait_ms = NEVER_MS
        self._longest_wait_ms = 0
        self._ends = 0
        self._run_ms = 0

    def set_slots(
        self, slots: int, *, free: int, partitions: int = 1, heartbeat_version: int = 0
    ) -> None:
        """What the workers' heartbeats say of this pool, for each of so many ledger partitions;
        `told` differs when one of them has been heard since."""
        if slots != self.slots:
            self.slots = slots
            share = max(START_PER_SLOT / partitions, START_SHARE_MIN)
            self.size = self._start = max(1.0, slots * share) if slots else 0.0
            self._was_too_large = False
        if free > 0:
            self._is_blocked = False
        if heartbeat_version != self._heartbeat_version:
            self._heartbeat_version = heartbeat_version
            self._told_free = free
            self._is_told = True

    def allowance(self, in_flight: int, now_ms: int) -> int:
        """How many more jobs may be dispatched now."""
        self._forget_old_use(in_flight, now_ms)
        if self._is_told:
            self._is_told = False
            self._level = in_flight + self._told_free if self._told_free > 0 else 0
        if self.slots == 0 or self._is_blocked:
            return 0
        size = int(self.size)
        if in_flight >= size:
            self._was_full = True
        allowed = max(size, min(self._level, START_PER_SLOT * self.slots)) - in_flight
        return max(0, allowed)

    def note_use(self, in_flight: int) -> None:
        """So many are out after what was allowed has been dispatched."""
        if in_flight > self._most_out:
            self._most_out = in_flight

    def _forget_old_use(self, in_flight: int, now_ms: int) -> None:
        """What grew under many quick jobs is not for a burst of slow ones a while later."""
        if now_ms - self._asked_at >= IDLE_MS:
            self.size = self._start
            self._was_too_large = False
            self._watched_at = now_ms
            self._most_out = in_flight
        elif now_ms - self._watched_at >= USE_MS:
            self.size = min(self.size, max(self._start, 2.0 * self._most_out))
            self._watched_at = now_ms
            self._most_out = in_flight
        self._asked_at = now_ms

    def note_outcome(self, waited_ms: int, run_ms: int, now_ms: int) -> None:
        """An attempt ended of which nothing had been heard before."""
        self._is_blocked = False
        self._ends += 1
        self._run_ms += run_ms
        self._note_wait(waited_ms, now_ms)

    def note_start(self, waited_ms: int, now_ms: int) -> None:
        """An attempt started and goes on: it is no short one."""
        self._ends += 1
        self._run_ms += LONG_RUN_MS
        self._note_wait(waited_ms, now_ms)

    def _note_wait(self, waited_ms: int, now_ms: int) -> None:
        """An attempt had waited `waited_ms` between its dispatch and its start."""
        if waited_ms > self._longest_wait_ms:
            self._longest_wait_ms = waited_ms
        if waited_ms < self._least_wait_ms:
            self._least_wait_ms = waited_ms
        if now_ms - self._looked_at < GROW_EVERY_MS:
            return
        if self._longest_wait_ms < QUICK_START_MS:
            if self._was_full and self._run_ms < SHORT_RUN_MS * self._ends:
                factor = GROW_FACTOR if self._was_too_large else GROW_FACTOR_FIRST
                self.size = min(float(SIZE_MAX), self.size * factor + 1)
        elif self._least_wait_ms >= LATE_START_MS:
            self._shrink(now_ms, self._start)
        self._looked_at = now_ms
        self._was_full = False
        self._least_wait_ms = NEVER_MS
        self._longest_wait_ms = 0
        self._ends = self._run_ms = 0

    def note_returned(self, now_ms: int) -> None:
        """A worker handed a job back: it was sent more than it could start."""
        self._is_blocked = True
        self._shrink(now_ms, 1.0)

    def _shrink(self, now_ms: int, least: float) -> None:
        self._was_too_large = True
        if self.size > least and now_ms - self._shrunk_at >= SHRINK_EVERY_MS:
            self.size = max(least, self.size * SHRINK_FACTOR)
            self._shrunk_at = now_ms
