"""Jobs whose worker died under an earlier attempt: they run a few at a time, each told of first.

Owns who of them goes next and when the one after that may. Refuses to know why the earlier worker
died, and what becomes of an attempt.

One of them may end this process. So the word that an attempt has started is durable before its
handler is called, and the ledger knows whose attempts a death has ended: only those are rescued
again. The fewest rescues go first, and who was rescued twice goes alone, so that after a few deaths
the one that kills stands apart and the others have ended. What has lived through three deaths all
the same runs in a process of its own (`tidemill.agents.worker.apart`), and holds up nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from tidemill.agents.worker.attempts import Attempt
from tidemill.schemas.wire import RunsAs

# Who has run for so long holds up nobody any more. All turns together must leave room within 15 s
# from the first death, of which a take-over without a supervisor needs nine.
PROBATION_SECONDS: Final = 0.5
# Into so many turns those that wait are divided: a take-over of a hundred long jobs fills its slots
# within some five seconds, and of ten jobs each goes alone.
TURNS: Final = 10
ALONE_FROM_RESCUES: Final = 2
APART_FROM_RESCUES: Final = 3


class Slots(Protocol):
    """Where an attempt would run."""

    waiting: deque[Attempt]

    @property
    def free(self) -> int: ...


def is_apart(attempt: Attempt) -> bool:
    """Whether it runs in a process of its own, though its kind does not."""
    return attempt.rescues >= APART_FROM_RESCUES and attempt.runs_as != "process"


class Suspects:
    """The line of one worker. `tell(attempt, go)` makes a start durable, then calls `go`;
    `lane` says where an attempt would run; `begin` gives it a slot there."""

    def __init__(
        self,
        *,
        tell: Callable[[Attempt, Callable[[], None]], None],
        begin: Callable[[Attempt], None],
        lane: Callable[[Attempt], Slots],
    ) -> None:
        self._tell = tell
        self._begin = begin
        self._lane = lane
        #: Those that have not been told of: they may still be given back.
        self.waiting: list[Attempt] = []
        # Told of, and neither ended nor seen to live.
        self._on_probation: set[Attempt] = set()
        self._told_apart: set[Attempt] = set()  # and not in the line of their lane yet
        self._most: dict[int, int] = {}  # how many waited with so many rescues, since all began

    def add(self, attempt: Attempt) -> None:
        """One more that waits; `kick` follows."""
        self.waiting.append(attempt)
        rescues = attempt.rescues
        same = sum(other.rescues == rescues for other in self.waiting)
        self._most[rescues] = max(same, self._most.get(rescues, 0))

    def count(self, kind: RunsAs) -> int:
        """How many wait for a slot of this kind."""
        return sum(
            1 for attempt in self.waiting if attempt.runs_as == kind and not is_apart(attempt)
        )

    def kick(self) -> None:
        """Let the next ones go, unless one of those before is still on probation."""
        if not self.waiting:
            return
        chosen = self._choose_apart()
        if not self._on_probation:
            beside = self._choose()
            self._on_probation.update(beside)
            chosen += beside
        for attempt in chosen:
            self.waiting.remove(attempt)
        if not self.waiting:
            self._most.clear()
        for attempt in chosen:
            self._tell(attempt, lambda attempt=attempt: self._go(attempt))  # type: ignore[misc]

    def _choose_apart(self) -> list[Attempt]:
        """Those for whom a process is ready. They hold up nobody, and nobody holds them up."""
        waiting = [attempt for attempt in self.waiting if is_apart(attempt)]
        if not waiting:
            return []
        lane = self._lane(waiting[0])
        chosen = waiting[: max(0, lane.free - len(lane.waiting) - len(self._told_apart))]
        self._told_apart.update(chosen)
        return chosen

    def _choose(self) -> list[Attempt]:
        free: dict[Slots, int] = {}
        chosen: list[Attempt] = []
        least = -1
        for attempt in sorted(self.waiting, key=_rescues_of):
            if is_apart(attempt):
                continue
            lane = self._lane(attempt)
            left = free.setdefault(lane, lane.free)
            if left <= 0:
                continue
            if least < 0:
                least = attempt.rescues
            if attempt.rescues != least or len(chosen) >= self._at_once(least):
                break
            free[lane] = left - 1
            chosen.append(attempt)
        return chosen

    def _at_once(self, rescues: int) -> int:
        if rescues >= ALONE_FROM_RESCUES:
            return 1
        return -(-self._most.get(rescues, 1) // TURNS)

    def _go(self, attempt: Attempt) -> None:
        self._told_apart.discard(attempt)
        if attempt.is_ended:
            self.over(attempt)
        else:
            self._begin(attempt)

    def over(self, attempt: Attempt) -> None:
        """The attempt has ended, or is as good as any other now."""
        if attempt in self._on_probation:
            self._on_probation.discard(attempt)
            self.kick()

    def look(self, now: float) -> None:
        """Called often: who has run for a while is no longer waited for."""
        for attempt in list(self._on_probation):
            if attempt.is_running and now - attempt.started_at >= PROBATION_SECONDS:
                self.over(attempt)
        self.kick()


def _rescues_of(attempt: Attempt) -> int:
    return attempt.rescues
