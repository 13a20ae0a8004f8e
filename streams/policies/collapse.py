"""Requests for the same thing share one run: `collapse_by` of a type.

Owns which living job of a user and type others join (the winner), by the value that their payloads
have at the type's path, and what becomes of those that joined (joiners).

A joiner waits for its winner by name, so its row alone says whom it waits for. When the winner
ends, however it does, its joiners are ended by commands of the same group: no crash comes between.
So that these fit into one group, a winner takes a bounded number; the next request runs by itself
and is the winner from then on. A job that has begun keeps its own run: a redrive and a retry join
nobody. A job with a later `run_at` takes no part before it is due.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import orjson

from tidemill.schemas.words import TERMINAL_STATES, EventKind, Reason
from tidemill.streams.commands import Obey
from tidemill.streams.decision import DECISION_BYTES
from tidemill.streams.job import Job, JobKey, Spec, WaitKey
from tidemill.streams.policies.base import GO, Policy, Verdict, wait

if TYPE_CHECKING:
    from tidemill.streams.job_type import JobType
    from tidemill.streams.turn import Turn

ID: Final = "collapse"
# Joiners of one winner; each with a payload above 4 KiB counts as several. Their ends are decided
# in one group.
JOINERS_MAX: Final = 2_000
# Bytes of results that joiners of one winner are given together; above it they get its id alone.
RESULTS_BYTES_MAX: Final = 8 * 1_048_576
VALUE_LENGTH_MAX: Final = 200  # bytes of JSON; of a longer value the digest is kept
LOOK_AGAIN_MS: Final = 60_000  # ms until a list is looked at again that has been woken
_OVER: Final = TERMINAL_STATES

Thing = tuple[str, str, bytes]
"""User, type and the value by which requests are the same."""


def value_at(payload: bytes, path: tuple[str, ...]) -> bytes | None:
    """The value there as JSON, its keys sorted; None where the payload has none, or null."""
    found: Any = orjson.loads(payload) if payload else None
    for name in path:
        if not isinstance(found, dict):
            return None
        found = found.get(name)
    if found is None:
        return None
    value = orjson.dumps(found, option=orjson.OPT_SORT_KEYS)
    return value if len(value) <= VALUE_LENGTH_MAX else hashlib.sha256(value).digest()


class Collapse(Policy):
    """`collapse_by` of types, within a user."""

    def __init__(self) -> None:
        super().__init__(ID)
        self.winners: dict[Thing, JobKey] = {}  # whom the next request joins
        self.things: dict[JobKey, Thing] = {}  # of living jobs that joined nobody
        # The last payload that was read, its path and the value there: the door reads it, and
        # `place` of the same job asks again.
        self._payload = b""
        self._path: tuple[str, ...] = ()
        self._value: bytes | None = None

    def concerns(self, job_type: JobType | None) -> bool:
        return job_type is not None and len(job_type.collapse_by) > 0

    # --- joining ---

    def admit(self, turn: Turn, spec: Spec, job_type: JobType | None) -> Verdict:
        if spec.run_at is not None and spec.run_at > turn.now_ms:
            return GO
        return self._join(turn, spec, job_type)

    def may_start(self, turn: Turn, job: Job) -> Verdict:
        """Asked at the start too: of a job that was asked for before its `run_at`."""
        if job.epoch > 0 or turn.waiting(_list_of(job.spec)) > 0:
            return GO
        return self._join(turn, job.spec, turn.job_type(job.spec.type))

    def _join(self, turn: Turn, spec: Spec, job_type: JobType | None) -> Verdict:
        thing = self._thing_of(spec, job_type)
        winner = None if thing is None else self.winners.get(thing)
        if winner is None or winner == spec.key:
            return GO
        name = (ID, spec.user_id, spec.type, winner[1])
        cost = 1 + len(spec.payload) // DECISION_BYTES
        if turn.waiting(name) * cost >= JOINERS_MAX:
            return GO
        verdict = wait(name, Reason.JOINED, None)
        verdict.data = {"winner": winner[1]}
        verdict.joins = True
        return verdict

    def _thing_of(self, spec: Spec, job_type: JobType | None) -> Thing | None:
        known = self.things.get(spec.key)
        if known is not None:
            return known
        if job_type is None or not job_type.collapse_by:
            return None
        payload, path = spec.payload, job_type.collapse_by
        if payload is not self._payload or path is not self._path:
            self._value = value_at(payload, path)
            self._payload, self._path = payload, path
        return None if self._value is None else (spec.user_id, spec.type, self._value)

    # --- the winner's end ---

    def on_change(self, turn: Turn, before: Job | None, after: Job) -> None:
        if after.state not in _OVER:
            return
        name = _list_of(after.spec)
        waiting = turn.waiting(name)
        if not waiting:
            return
        verdict = _end_of(turn, after, waiting)
        while (key := turn.first_of(name)) is not None:
            job = turn.job(key)
            if job is not None and job.waits_for == name:
                turn.command(key, Obey(verdict))
        turn.drop_list(name)

    # --- a definition that changes ---

    def define(self, turn: Turn, before: JobType | None, after: JobType) -> None:
        """What is the same is now said by another path, or by none: then joiners run by
        themselves. Those that wait keep their winner otherwise."""
        path: tuple[str, ...] = () if before is None else before.collapse_by
        if path == after.collapse_by:
            return
        self.things = {
            key: thing for key, thing in self.things.items() if thing[1] != after.type
        }
        self.winners = {
            thing: key for thing, key in self.winners.items() if thing[1] != after.type
        }
        if after.collapse_by:
            for job in turn.jobs.values():
                if job.spec.type == after.type:
                    self._follow(turn, job, after, takes_over=False)
            return
        for name in turn.wait_lists(ID):
            if name[2] == after.type:
                turn.look_at(name, turn.now_ms)

    def on_timer(self, turn: Turn, name: JobKey | WaitKey) -> None:
        if not self.concerns(turn.job_type(name[2])):
            turn.wake(name, turn.waiting(name), turn.now_ms + LOOK_AGAIN_MS)

    # --- indices ---

    def place(self, turn: Turn, before: Job | None, after: Job) -> None:
        self._follow(turn, after, turn.job_type(after.spec.type), takes_over=before is None)

    def _follow(
        self, turn: Turn, job: Job, job_type: JobType | None, *, takes_over: bool
    ) -> None:
        """`takes_over`: a new job that joined nobody found a winner that takes no more."""
        key = job.spec.key
        joins = job.waits_for is not None and job.waits_for[0] == ID
        if job.state in _OVER or joins:
            thing = self.things.pop(key, None)
            if thing is not None and self.winners.get(thing) == key:
                del self.winners[thing]
            return
        if not job.spec.max_attempts:
            return  # its type is not known yet: it is asked about again when it is
        run_at = job.spec.run_at
        if job.epoch == 0 and run_at is not None and run_at > turn.now_ms:
            return
        thing = self._thing_of(job.spec, job_type)
        if thing is None:
            return
        self.things[key] = thing
        if thing not in self.winners or (takes_over and job.epoch == 0 and run_at is None):
            self.winners[thing] = key

    def clear(self) -> None:
        self.winners = {}
        self.things = {}


def _list_of(spec: Spec) -> WaitKey:
    """Where those wait that joined the job."""
    return (ID, spec.user_id, spec.type, spec.job_id)


def _end_of(turn: Turn, winner: Job, joiners: int) -> Verdict:
    """What each joiner is told: the winner's id, run and status, and its result if it has one."""
    into: dict[str, Any] = {
        "job_id": winner.spec.job_id, "run": winner.run, "status": winner.state.value
    }
    data: dict[str, Any] = {"collapsed_into": into}
    ended = turn.last_data
    result = None if ended is None else ended.get("result")
    if result is not None:
        size = len(orjson.dumps(result))
        if size * joiners <= RESULTS_BYTES_MAX:
            data["result"] = result
        else:
            into["result_omitted"] = True
    verdict = Verdict(EventKind.SKIPPED, Reason.COLLAPSED)
    verdict.data = data
    return verdict
