"""Workers that stand still: which dispatched jobs are with one, and what that means for them.

Owns the question whether a job that nobody has told of has begun in a worker whose process is busy
and not dead. Refuses to know heartbeats: its owner says which stalls were told.

Code of a handler may hold a worker's loop or its interpreter. Its attempts run on, so they are no
other worker's, however long nothing is heard of them. What had not begun will not begin there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from tidemill.schemas.marks import mark_of
from tidemill.schemas.words import Reason, State
from tidemill.streams.job import Job


class Stall(NamedTuple):
    """A worker's last one."""

    incarnation: int
    marks: frozenset[int]  # of the attempts that began last, `tidemill.schemas.marks`
    queues: frozenset[str]
    first_ms: int  # epoch ms, the ledger's clock: when it was first told
    last_ms: int  # and last
    is_over: bool


NO_STALLS: Final[Mapping[str, Stall]] = {}


class Stalls:
    """What one partition knows of them."""

    def __init__(self) -> None:
        self._told: Mapping[str, Stall] = NO_STALLS
        self._alive: Mapping[str, int] = {}

    def set_told(self, told: Mapping[str, Stall], alive: Mapping[str, int]) -> None:
        """The last stall of each worker, and the incarnation of each that lives."""
        self._told = told
        self._alive = alive

    def begun_at(self, job: Job) -> str | None:
        """The worker in which a dispatched job had begun when that was stalled."""
        mark = mark_of(job.spec.job_id, job.epoch)
        for worker_id, stall in self._told.items():
            if mark in stall.marks and (job.dispatched_at or 0) <= stall.first_ms:
                return worker_id
        return None

    def has(self, job: Job, outcome: dict[str, Any]) -> bool:
        """Whether a stalled worker has the job that another one hands back, because its record came
        again: it began there, and goes on or ends there."""
        if not self._may_wait_there(job, outcome):
            return False
        worker_id = self.begun_at(job)
        return worker_id is not None and self._lives(worker_id)

    def _may_wait_there(self, job: Job, outcome: dict[str, Any]) -> bool:
        """A start that was told needs no mark: its worker has the job, or its silence will tell."""
        if not self._told or outcome.get("reason") != Reason.REDELIVERED:
            return False
        return job.state is State.DISPATCHED and bool(job.epoch == outcome["epoch"])

    def is_unbegun(self, job: Job, outcome: dict[str, Any]) -> bool:
        """Whether a job that `has` denies came again because of a stall alone: the worker that had
        it lives and stands still, had not begun it and will not. Nobody was lost with it."""
        holder = outcome.get("holder")
        if not self._may_wait_there(job, outcome):
            return False
        stall = self._told.get(holder) if isinstance(holder, str) else None
        return stall is not None and not stall.is_over and self._lives(str(holder))

    def _lives(self, worker_id: str) -> bool:
        return self._alive.get(worker_id) == self._told[worker_id].incarnation

    def reason_to_rescue(self, job: Job) -> Reason | None:
        """Why a dispatched job must be rescued: it had begun in a stalled worker that is gone."""
        if not self._told:
            return None
        worker_id = self.begun_at(job)
        if worker_id is None or self._lives(worker_id):
            return None
        return Reason.WORKER_RESTARTED if worker_id in self._alive else Reason.WORKER_LOST

    def quiet_until(self, queue: str) -> int:
        """Epoch ms until which nothing can be said of what waits in stalled workers of a queue."""
        return max(
            (stall.last_ms for stall in self._told.values() if queue in stall.queues), default=0
        )
