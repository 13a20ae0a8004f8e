"""Ticks of schedules: what becomes of one while an earlier one has not ended.

Owns overlap, and which ticks have not ended. When a tick is due is in
`tidemill.streams.schedules.ticking`. Ticks that are caught up wait for one another where others are
skipped: `catch_up="all"` means that they run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidemill.schemas.schedules import SOURCE, USER_PREFIX, Overlap
from tidemill.schemas.words import TERMINAL_STATES, Reason
from tidemill.streams.commands import Cancel
from tidemill.streams.job import Job, JobKey, Spec, WaitKey
from tidemill.streams.policies.base import GO, Policy, Verdict, skip, wait
from tidemill.streams.schedules.ticking import Ticking
from tidemill.streams.store.table import AnyTable

if TYPE_CHECKING:
    from tidemill.streams.job_type import JobType
    from tidemill.streams.store.definitions import Definitions
    from tidemill.streams.turn import Turn

ID: Final = "schedules"
QUEUED_MAX: Final = 1_000  # ticks of a schedule that wait for an earlier one
#: Ticks that have not ended, before one that still waits for them.
EARLIER_MAX: Final[dict[str, int]] = {
    "skip": 0, "queue_one": 1, "queue_all": QUEUED_MAX, "cancel_old": QUEUED_MAX,
}
LOOK_AGAIN_MS: Final = 60_000  # ms until a list is looked at that nobody has woken
OVERLAPS: Final = skip(Reason.OVERLAP)
_OVER: Final = TERMINAL_STATES


def _name_of(spec: Spec) -> str | None:
    """The schedule that asked for it; None: none did."""
    if spec.source != SOURCE or not spec.user_id.startswith(USER_PREFIX):
        return None
    return spec.user_id.removeprefix(USER_PREFIX)


class Schedules(Policy):
    """Schedules and their ticks."""

    def __init__(self, definitions: Definitions) -> None:
        super().__init__(ID, is_for_requests=True)
        self.ticking = Ticking(definitions)
        self.open: dict[str, dict[JobKey, int]] = {}  # by name, ticks that have not ended

    def tables(self) -> tuple[AnyTable, ...]:
        return (self.ticking.table,)

    def _overlap(self, name: str) -> Overlap:
        row = self.ticking.table.get(name)
        spec = None if row is None else row.spec
        return "allow" if spec is None else spec.overlap

    def _earlier(self, name: str, number: int) -> int:
        """How many before it have not ended."""
        return sum([1 for other in self.open.get(name, {}).values() if other < number])

    def admit(self, turn: Turn, spec: Spec, job_type: JobType | None) -> Verdict:
        name = _name_of(spec)
        if name is None:
            return GO
        is_later = spec.run_at is not None and spec.run_at > turn.now_ms
        return self._answer(name, spec.number, self._overlap(name), is_later=is_later)

    def of_late(self, turn: Turn, name: str, *, is_later: bool) -> Verdict:
        """What is said of a tick that is caught up, or that somebody asked for: it waits for the
        earlier ones where others are skipped. `is_later`: it is not due before its jitter."""
        overlap = self._overlap(name)
        if overlap == "skip":
            overlap = "queue_all"
        return self._answer(name, turn.accepted, overlap, is_later=is_later)

    def _answer(self, name: str, number: int, overlap: Overlap, *, is_later: bool) -> Verdict:
        earlier = self._earlier(name, number)
        if not earlier or overlap == "allow":
            return GO
        if earlier > EARLIER_MAX[overlap]:
            return OVERLAPS
        return GO if is_later else _waits(name)

    def may_start(self, turn: Turn, job: Job) -> Verdict:
        name = _name_of(job.spec)
        if name is None or self._overlap(name) == "allow":
            return GO
        return _waits(name) if self._earlier(name, job.spec.number) else GO

    def cancel_old(self, turn: Turn, name: str) -> None:
        """A tick is due: those before it are asked to end."""
        for key in list(self.open.get(name, {})):
            job = turn.job(key)
            if job is not None and not job.is_cancel_requested:
                turn.decide(key, job, Cancel(key, ID, "a later tick is due", None))

    def place(self, turn: Turn, before: Job | None, after: Job) -> None:
        name = _name_of(after.spec)
        if name is None:
            return
        if after.state not in _OVER:
            self.open.setdefault(name, {})[after.key] = after.spec.number
            return
        others = self.open.get(name)
        if others is None or others.pop(after.key, None) is None:
            return
        if not others:
            del self.open[name]
        if turn.waiting((ID, name)):
            turn.look_at((ID, name), turn.now_ms)

    def on_timer(self, turn: Turn, name: JobKey | WaitKey) -> None:
        turn.wake(name, 1, turn.now_ms + LOOK_AGAIN_MS)

    def clear(self) -> None:
        self.open = {}
        self.ticking.clear()


def _waits(name: str) -> Verdict:
    return wait((ID, name), Reason.OVERLAP, None)
