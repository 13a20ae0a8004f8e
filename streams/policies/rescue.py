"""Attempts whose worker is gone, and jobs that are given back too often.

Owns when a worker's silence or a stall means that its attempt is lost, and how often a job survives
that. Refuses to know heartbeats: the edge says which workers live and what was heard.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from tidemill.schemas.wire import HEARTBEAT_MISSING_SECONDS
from tidemill.schemas.words import ErrorCode, Reason, State
from tidemill.streams.attempts import ENDED_UNTOLD
from tidemill.streams.job import Job
from tidemill.streams.policies.base import GO, Policy, Verdict, fail
from tidemill.streams.stalls import Stall, Stalls

if TYPE_CHECKING:
    from tidemill.streams.turn import Turn

# Per run. After three a worker runs the job in a process of its own, where a job that kills ends
# itself alone (`tidemill.agents.worker.apart`). So the rest are deaths that others caused: room for
# six more killers of three deaths each. Some jobs still end all around them, as where a container
# is ended as one when its memory is spent; those must not end it for hours.
RESCUES_MAX: Final = 20
# Stops of its workers that a run survives while it runs: a deploy a day for three months. A job
# that is longer than the stop grace begins anew with each, so it must not do so for ever.
INTERRUPTIONS_MAX: Final = 100
LEASE_MS: Final = int(HEARTBEAT_MISSING_SECONDS * 1000)  # ms before a worker's silence counts
DISPATCH_LOST_MS: Final = 30_000  # ms in a ready topic without a start, while workers live
SILENT_DETAIL: Final = f"its worker was silent for {HEARTBEAT_MISSING_SECONDS:g} s"
NO_END: Final = 2**62  # ms; later than every instant
_RUNNING: Final = State.RUNNING


class Rescue(Policy):
    """Leases, and the bounds of rescues and interruptions."""

    def __init__(self, interruptions_max: int) -> None:
        super().__init__("rescue")
        self.stalls = Stalls()
        self._interruptions_max = interruptions_max
        self._workers: Mapping[str, int] = {}
        self._former_ends: Mapping[str, str] = {}  # of workers' last processes, where told
        self._leases_run_from = 0
        self._heard_until = 0

    # --- what the edge tells ---

    def begin_leases(self, now_ms: int) -> None:
        """Every lease gets its full time from now on."""
        self._leases_run_from = now_ms

    def set_workers(
        self,
        alive: Mapping[str, int],
        *,
        heard_since_ms: int,
        heard_until_ms: int,
        former_ends: Mapping[str, str],
        stalls: Mapping[str, Stall],
    ) -> int:
        """See `Partition.set_workers`. Epoch ms since when all that workers said was heard."""
        self._workers = alive
        self._former_ends = former_ends
        self._leases_run_from = max(self._leases_run_from, heard_since_ms)
        self._heard_until = heard_until_ms
        self.stalls.set_told(stalls, alive)
        return self._leases_run_from

    def is_news(self, alive: Mapping[str, int]) -> bool:
        """Whether these are other workers than before."""
        return alive != self._workers

    # --- which attempts are lost ---

    def reason_to_rescue(self, job: Job, now_ms: int, *, has_workers: bool) -> Reason | None:
        """Why the attempt that is out must be taken back. `has_workers`: of the job's queue."""
        since = max(job.dispatched_at or 0, self._leases_run_from)
        if job.state is _RUNNING and job.worker is not None:
            worker_id, incarnation = job.worker
            alive = self._workers.get(worker_id)
            if alive is None:
                # A worker that nobody has heard yet is not lost yet.
                return Reason.WORKER_LOST if now_ms - since >= LEASE_MS else None
            if alive < incarnation:
                # Its first beat may be on its way. Or its clock has gone back since.
                return Reason.WORKER_RESTARTED if now_ms - since > DISPATCH_LOST_MS else None
            return Reason.WORKER_RESTARTED if alive > incarnation else None
        reason = self.stalls.reason_to_rescue(job)
        if reason is not None:
            return reason
        since = max(since, self.stalls.quiet_until(job.spec.queue))
        is_lost = has_workers and min(now_ms, self._heard_until) - since > DISPATCH_LOST_MS
        return Reason.DISPATCH_LOST if is_lost else None

    def detail_of(self, job: Job, reason: Reason) -> str | None:
        """How the worker of a rescued attempt ended."""
        if reason == Reason.WORKER_LOST:
            return SILENT_DETAIL
        if reason == Reason.WORKER_RESTARTED:
            worker_id = self.stalls.begun_at(job) if job.worker is None else job.worker[0]
            return self._former_ends.get(worker_id or "") or ENDED_UNTOLD
        return None

    # --- how often ---

    def may_go_on(self, turn: Turn, job: Job, detail: str | None) -> Verdict:
        if job.rescues > RESCUES_MAX:
            return fail(Reason.WORKER_LOST, _worker_lost_error(job.rescues, detail))
        if job.interruptions > self._interruptions_max:
            return fail(Reason.INTERRUPTED, _interrupted_error(job.interruptions))
        return GO


def _worker_lost_error(rescues: int, detail: str | None) -> dict[str, Any]:
    """The error of a job that was rescued too often. `detail`: how the last worker ended."""
    last = "" if detail is None else f"; of the last one: {detail}"
    return {
        "code": ErrorCode.WORKER_LOST.value,
        "message": f"{rescues} workers were lost while they ran this job{last}; see whether it "
        "crashes its process or needs too much memory, then redrive it",
        "retryable": False,
    }


def _interrupted_error(interruptions: int) -> dict[str, Any]:
    """The error of a job whose workers were stopped too often before it could end."""
    return {
        "code": ErrorCode.INTERRUPTED.value,
        "message": f"{interruptions} workers were stopped while they ran this job, and it began "
        "anew each time: raise stop_grace_seconds above what it takes, split the job, or raise "
        "interruptions_max; then redrive it",
        "retryable": False,
    }
