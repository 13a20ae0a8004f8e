"""The members' side: requests that parents release are taken, and ends are told.

Owns what becomes of a request that is known already, who watches a job, and what an end says.
Refuses to know what a gather makes of it.

A watcher is a row from the release on and goes with the end that it is told, whatever becomes of
the job afterwards: so each member ends once for its gather. Membership comes in the envelope of a
message alone, which only ledgers write; nothing in a request makes a job a member.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from tidemill.schemas.codec import Decoded, Refusal
from tidemill.schemas.event_writer import Event
from tidemill.schemas.instants import InstantCache, instant_text
from tidemill.schemas.words import TERMINAL_STATES, ErrorCode, Reason, State
from tidemill.streams.commands import Cancel, Redrive
from tidemill.streams.gathers import wire
from tidemill.streams.gathers.table import SUCCESSES
from tidemill.streams.gathers.watchers import (
    WATCHERS_MAX,
    Membership,
    Watcher,
    Watchers,
    Watching,
)
from tidemill.streams.job import Job, JobKey

if TYPE_CHECKING:
    from tidemill.streams.turn import Turn

ID: Final = "gather"
NOBODY: Final[Watching] = ()
_OVER: Final = TERMINAL_STATES


class Members:
    """The members that are at home in one partition, whoever's gathers they are of."""

    def __init__(self) -> None:
        self.table = Watchers()
        self._asked, self._ended = InstantCache(), InstantCache()
        self.ends: dict[Membership, list[wire.Entry]] = {}  # told when the group is sealed

    # --- a release ---

    def release(
        self, turn: Turn, of: Membership, members: list[list[Any]], traceparent: object
    ) -> None:
        """Takes requests, each as if it had come as a record."""
        trace = traceparent if isinstance(traceparent, str) else None
        for index, request, again in members:
            self._take(turn, of, index, request, again, trace)

    def _take(
        self, turn: Turn, of: Membership, index: int, request: dict[str, Any], again: str | None,
        trace: str | None,
    ) -> None:
        turn.spend(1)
        decoded = wire.check_member(request, trace)
        if isinstance(decoded, Refusal):
            self._answer(of, index, turn, request, decoded.code, decoded.message)
            return
        job_id = decoded.request.job_id
        if job_id is None:
            message = "field 'job_id' is required of a member; this is a bug of the ledger"
            self._answer(of, index, turn, request, ErrorCode.MISSING_FIELD, message)
            return
        key = (decoded.request.user_id, job_id)
        if key == of[:2]:
            message = "field 'job_id': a job cannot wait for itself; ask for another one"
            self._answer(of, index, turn, request, ErrorCode.INVALID_FIELD, message)
            return
        if len(self.table.get(key) or NOBODY) >= WATCHERS_MAX:
            message = f"more than {WATCHERS_MAX} gathers wait for this job; ask for another one"
            self._answer(of, index, turn, request, ErrorCode.TOO_MANY_WATCHERS, message)
            return
        self._meet(turn, Watcher(of, index, is_own=False), key, request, decoded, again, trace)

    def _meet(
        self, turn: Turn, watcher: Watcher, key: JobKey, request: dict[str, Any],
        decoded: Decoded, again: str | None, trace: str | None,
    ) -> None:
        """What becomes of the request, by what is known of its job."""
        job = turn.job(key)
        ended = None if job is not None else turn.ended(key)
        is_new = (job is None and ended is None) or (
            job.is_refused if job is not None else ended is not None and ended.is_refused
        )
        if is_new:
            self._watch(key, watcher.owning())
            turn.submit(decoded, key[1], turn.cause)
            return
        state = job.state if job is not None else ended.state if ended is not None else None
        fingerprint = (
            job.spec.fingerprint if job is not None
            else ended.fingerprint if ended is not None else None
        )
        if fingerprint != decoded.fingerprint:
            turn.submit(decoded, key[1], turn.cause)  # the job's story tells of it
            message = (
                f"user {key[0]!r} has a job {key[1]!r} with another body; give this member another "
                "job_id, or the very same request"
            )
            self._answer(
                watcher.of, watcher.index, turn, request, ErrorCode.ANOTHER_BODY, message
            )
        elif job is not None and job.state not in _OVER:
            self._watch(key, watcher)
            turn.submit(decoded, key[1], turn.cause)
        elif again is not None and state is not None and state.value not in SUCCESSES:
            self._run_again(turn, watcher, key, request, job, again, trace)
        else:
            turn.submit(decoded, key[1], turn.cause)
            self._tell(watcher.of, watcher.index, _known_end(turn, key, request, state, job))

    def _run_again(
        self, turn: Turn, watcher: Watcher, key: JobKey, request: dict[str, Any], job: Job | None,
        again: str, trace: str | None,
    ) -> None:
        """A member that did not succeed: a dead letter is redriven, others begin anew under another
        id."""
        if job is None or not job.is_dead_letter:
            request["job_id"] = again
            self._take(turn, watcher.of, watcher.index, request, None, trace)
            return
        self._watch(key, watcher.owning())
        if not turn.redrive(key, job, Redrive(key, ID, "its gather runs again", turn.cause)):
            self._unwatch(key, watcher)
            self._tell(
                watcher.of, watcher.index, _known_end(turn, key, request, job.state, job)
            )

    def _watch(self, key: JobKey, watcher: Watcher) -> None:
        self.table.put(key, (*(self.table.get(key) or NOBODY), watcher))

    def _unwatch(self, key: JobKey, watcher: Watcher) -> bool:
        """Whether it watched."""
        known = self.table.get(key) or NOBODY
        rest = tuple([one for one in known if not _is_same(one, watcher.of, watcher.index)])
        if len(rest) == len(known):
            return False
        self.table.put(key, rest or None)
        return True

    # --- a stop ---

    def stop(
        self, turn: Turn, of: Membership, members: list[list[Any]], *, forgets: bool
    ) -> None:
        """Jobs that gathers alone have asked for are cancelled with the last one of them. Others
        go on, and are no longer waited for."""
        for index, user_id, job_id, again in members:
            turn.spend(1)
            for name in (again, job_id):
                if name is not None and self._stop(turn, (user_id, name), of, index, forgets):
                    break

    def _stop(
        self, turn: Turn, key: JobKey, of: Membership, index: int, forgets: bool
    ) -> bool:
        known = self.table.get(key) or NOBODY
        mine = [one for one in known if _is_same(one, of, index)]
        job = turn.job(key)
        if not mine or job is None:
            return False  # it has ended, and that is under way
        watcher = mine[0]
        others = [one for one in known if one is not watcher]
        is_cancelled = watcher.is_own and not others
        if is_cancelled and not forgets:
            self._cancel(turn, key, job)  # its end is told when it comes
            return True
        if watcher.is_own and others:
            others[0] = others[0].owning()
        self.table.put(key, tuple(others) or None)
        if is_cancelled:
            self._cancel(turn, key, job)
        if not forgets:
            self._tell(of, index, orjson.dumps({
                "user_id": key[0], "job_id": key[1], "type": job.spec.type,
                "status": State.CANCELLED.value, "reason": Reason.NO_LONGER_AWAITED.value,
                "attempts": job.attempt, "finished_at": instant_text(turn.now_ms),
            }))
        return True

    def _cancel(self, turn: Turn, key: JobKey, job: Job) -> None:
        if not job.is_cancel_requested:
            turn.decide(key, job, Cancel(key, ID, "its gather has ended", turn.cause))

    # --- ends ---

    def job_ended(self, turn: Turn, job: Job, event: Event) -> None:
        """A job has ended: all gathers that wait for it are told."""
        known = self.table.get(job.key)
        if known is None:
            return
        text = self._end_of(job, event)
        for watcher in known:
            self._tell(watcher.of, watcher.index, text)
        self.table.put(job.key, None)

    def _end_of(self, job: Job, event: Event) -> bytes:
        """What jobs.completed says of an end, without what is null."""
        spec, data = job.spec, event.data
        end: dict[str, Any] = {
            "user_id": spec.user_id, "job_id": spec.job_id, "type": spec.type, "queue": spec.queue,
            "status": job.state.value, "attempts": event.attempt, "run": event.run,
            "sequence": event.sequence, "requested_at": self._asked.text(spec.requested_at),
            "finished_at": self._ended.text(event.occurred_at),
        }
        if event.reason is not None:
            end["reason"] = event.reason
        if event.error is not None:
            end["error"] = event.error
        if job.started_at is not None:
            end["started_at"] = self._asked.text(job.started_at)
        if event.wait_ms is not None:
            end["wait_ms"] = event.wait_ms
        if event.run_ms is not None:
            end["run_ms"] = event.run_ms
        if data is not None:
            if data.get("result") is not None:
                end["result"] = data["result"]
            if event.reason == Reason.COLLAPSED:
                end["collapsed_into"] = data["collapsed_into"]
        return orjson.dumps(end)

    def _answer(
        self, of: Membership, index: int, turn: Turn, request: dict[str, Any], code: ErrorCode,
        message: str,
    ) -> None:
        """A request that cannot be taken: the member has failed."""
        self._tell(of, index, orjson.dumps({
            "user_id": _text(request, "user_id"), "job_id": _text(request, "job_id"),
            "type": _text(request, "type"), "status": State.FAILED.value,
            "reason": Reason.NOT_RETRYABLE.value, "attempts": 0,
            "error": {"code": code.value, "message": message, "retryable": False},
            "finished_at": instant_text(turn.now_ms),
        }))

    def _tell(self, of: Membership, index: int, end: bytes) -> None:
        self.ends.setdefault(of, []).append((index, b"[%d,%b]" % (index, end)))

    def send(self, turn: Turn) -> None:
        """The ends of the group at hand go to their parents."""
        for of, entries in self.ends.items():
            for pack in wire.packs(entries):
                ends = [orjson.Fragment(text) for text in pack]
                turn.send(of[0], ID, {"kind": "ends", "of": of, "ends": ends})
        self.ends = {}


def _text(request: dict[str, Any], name: str) -> str:
    """What a request says there, when that is a text: of one that is refused anything may be."""
    found = request.get(name)
    return found if isinstance(found, str) else ""


def _is_same(watcher: Watcher, of: Membership, index: int) -> bool:
    return watcher.index == index and watcher.of == of


def _known_end(
    turn: Turn, key: JobKey, request: dict[str, Any], state: State | None, job: Job | None
) -> bytes:
    """The end of a job that had ended before: its result is no longer here."""
    ended = turn.ended(key)
    end: dict[str, Any] = {
        "user_id": key[0], "job_id": key[1], "type": request.get("type"),
        "status": State.FAILED.value if state is None else state.value,
    }
    if state is State.SUCCEEDED:
        end["result_omitted"] = True
    if job is not None:
        end |= {
            "queue": job.spec.queue, "attempts": job.attempt, "run": job.run,
            "sequence": job.sequence, "requested_at": instant_text(job.spec.requested_at),
        }
        if job.reason is not None:
            end["reason"] = job.reason
        if job.error is not None and state is State.FAILED:
            end["error"] = job.error
    finished_at = job.finished_at if job is not None else None
    if finished_at is None:
        finished_at = turn.now_ms if ended is None else ended.finished_at
    end["finished_at"] = instant_text(finished_at)
    return orjson.dumps(end)
