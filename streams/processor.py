"""Where one decision is made, kept and written: the only caller of the core.

Owns the way from a command to the changed state, the records and the indices. Refuses to know where
commands come from: records (`tidemill.streams.intake`) and time (`tidemill.streams.partition`) both
bring them.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from tidemill.schemas.codec import Decoded
from tidemill.schemas.event_writer import Event
from tidemill.schemas.topics import Topics
from tidemill.schemas.words import EventKind, Reason, State
from tidemill.streams import suspensions
from tidemill.streams.commands import Cancel, Cause, CoreCommand, Forget, Resolve, Signal, Submit
from tidemill.streams.decision import (
    DECISION_BYTES,
    Accepted,
    Effect,
    FollowUp,
    FollowUpsWithoutEnd,
    InvalidTransition,
    Rejected,
    cost_of,
    react,
)
from tidemill.streams.decisions import decide
from tidemill.streams.dispatch.schedule import Schedule, waits_for_type
from tidemill.streams.gathers.table import GATHER
from tidemill.streams.job import UNKNOWN_TYPE, Job, JobKey
from tidemill.streams.job_type import JobType
from tidemill.streams.lifecycle import NOTES
from tidemill.streams.output import Output
from tidemill.streams.policies.base import Verdict
from tidemill.streams.store.finished import Ended
from tidemill.streams.store.kept_cancels import KeptCancel
from tidemill.streams.store.kept_signals import KeptSignal
from tidemill.streams.store.memory import SIGNAL
from tidemill.streams.store.rows import job_key
from tidemill.streams.store.state import PartitionState
from tidemill.streams.turn import NO_CAUSE, Turn

# Follow-ups of one decision, as decisions count: far beyond what a group may hold. A policy that
# has work for more jobs keeps a table of it and does a part in each group.
FOLLOW_UPS_MAX: Final = 20_000
_NOTHING: Final[list[bytes]] = []


class Processor:
    """State, indices and output of one partition, and the step that keeps them together."""

    def __init__(self, number: int, topics: Topics, state: PartitionState) -> None:
        self.state = state
        self.schedule = Schedule(state.kinds)
        self.output = Output(topics, number)
        self.audits = 0  # audit events that the record at hand has led to
        self.turn = Turn(state, self.schedule)
        self.turn.processor = self
        self._policies = state.policies
        self._follow_ups: deque[FollowUp] = deque()
        self._spent = 0

    def decide(self, key: JobKey, job: Job | None, command: CoreCommand) -> bool:
        """Asks the core, keeps what changed, and writes what it leads to. What follows for other
        jobs is decided too, until nothing follows: a part of it would be lost with this process.
        """
        is_accepted = self._decide(key, job, command)
        if self._follow_ups:
            self.drain()
        return is_accepted

    def submit(
        self, decoded: Decoded, job_id: str, cause: Cause | None,
        said: dict[str, Verdict] | None = None,
    ) -> None:
        """A request that can be taken, by a record or by time. `said`: see `Turn.submit`."""
        key = (decoded.request.user_id, job_id)
        job = self.state.jobs.get(key)
        row_key: bytes | None = None
        ended: Ended | None = None
        if job is None:
            row_key = job_key(key)
            ended = self.state.ended_row(row_key)
            if ended is not None and ended.is_refused:
                job = Job.refused(key, ended.finished_at, row_key)
                ended = None
        self.decide(key, job, Submit(decoded, job_id, cause, row_key, ended, said))

    def drain(self) -> None:
        """Decides what follows, until nothing does."""
        most = self._spent + FOLLOW_UPS_MAX
        while self._follow_ups:
            key, command = self._follow_ups.popleft()
            job = self.state.jobs.get(key)
            self._spent += 1 if job is None else cost_of(job)
            if self._spent > most:
                self._follow_ups.clear()
                raise FollowUpsWithoutEnd(f"the last one is {command!r} for {key}")
            self._decide(key, job, command)

    def follow(self, key: JobKey, command: CoreCommand) -> None:
        """One more command that follows from what is going on; `drain` decides it."""
        self._follow_ups.append((key, command))

    def spend(self, decisions: int) -> None:
        """Something else than a decision about a job takes time of the group."""
        self._spent += decisions

    @property
    def spent(self) -> int:
        """What `take_spent` would say."""
        return self._spent

    def take_spent(self) -> int:
        """How many decisions the follow-ups and messages counted as since this was asked last."""
        spent, self._spent = self._spent, 0
        return spent

    def _decide(self, key: JobKey, job: Job | None, command: CoreCommand) -> bool:
        turn = self.turn
        decision = decide(job, command, turn)
        if not isinstance(decision, Accepted):
            if isinstance(decision, Rejected):
                self._record_rejection(key, job, command, decision)
            elif isinstance(command, Cancel):
                self._keep(command)
            elif isinstance(command, Signal):
                self._keep_signal(job, command)
            return False
        after = decision.job
        self.state.put(job, after)
        holder = after if job is None or not job.holds_limit else job
        policies = self._policies.of(holder, after.spec, self.state.job_type(after.spec.type))
        if policies:
            turn.last_data = decision.events[-1].data
        for policy in policies:
            policy.on_change(turn, job, after)
        output = self.output
        for event in decision.events:
            output.event(event)
            for effect in react(event):
                self._cause(effect, after, event)
        self.schedule.place(job, after)
        for policy in policies:
            policy.place(turn, job, after)
        if decision.follow_ups:
            self._follow_ups.extend(decision.follow_ups)
        return True

    def _cause(self, effect: Effect, job: Job, event: Event) -> None:
        match effect:
            case Effect.DISPATCH:
                memory = self.state.memory
                known = memory.entries(job) if memory.by_job or memory.gathers.by_job else _NOTHING
                if known:
                    self._spent += sum(map(len, known)) // DECISION_BYTES
                self.output.dispatch(job, event, self.schedule.name_of(job.spec), known)
            case Effect.COMPLETE:
                self.output.completed(job, event)
                if self.state.memory.by_job and not job.is_dead_letter:
                    self.state.memory.forget_job(job.key)
                self._policies.gather.job_ended(self.turn, job, event)
                # One that has failed may run again: signals wait for it as long as they do.
                if self.state.signals.by_job and job.state is not State.FAILED:
                    self.state.signals.forget_job(job.key)
            case Effect.DEAD_LETTER:
                if job.is_dead_letter:
                    self.output.dead_job(job, event)
            case Effect.ANNOUNCE_RETRY:
                self.output.retry(job, event)
            case Effect.REMEMBER:
                self._remember(job, event.data or {})
            case Effect.GATHER:
                data = event.data or {}
                if data["kind"] == GATHER:
                    self._policies.gather.parents.begin(self.turn, job, data)
            case Effect.TELL_WORKER:
                self.output.cancel_word(job)
            case Effect.MAKE_READY | Effect.SET_TIMER:
                pass  # `schedule.place` does it, once, from the job's last state

    def _remember(self, job: Job, data: dict[str, Any]) -> None:
        self.state.memory.remember(job, data)
        if data["kind"] == SIGNAL:
            self.state.signals.drop(job.key, data["name"])

    def _record_rejection(
        self, key: JobKey, job: Job | None, command: CoreCommand, rejected: Rejected
    ) -> None:
        """An event that changes no job, where the law has one for it."""
        kind = rejected.audit
        if kind is not None:
            state = job.state if job is not None else rejected.state
            self._note(
                kind, key, job, state, rejected.type, reason=rejected.reason,
                cause=getattr(command, "cause", None), data=rejected.data,
            )

    def _note(
        self, kind: EventKind, key: JobKey, job: Job | None, state: State | None, type: str, *,
        cause: Cause | None, reason: Reason | None = None, due_at: int | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        """An event that changes no job. `state` and `type`: of one that is not alive."""
        if state not in NOTES[kind]:
            raise InvalidTransition(job, kind)
        spec = job.spec if job is not None else None
        self.audits += 1
        self.output.event(
            Event(
                kind, key[0], key[1], spec.type if spec is not None else type,
                spec.queue if spec is not None else "",
                spec.priority if spec is not None else "medium",
                spec.requested_at if spec is not None else 0,
                job.run if job is not None else 0, None,
                job.attempt if job is not None else 0, job.epoch if job is not None else 0,
                self.state.clock_ms, state, state, reason=reason, due_at=due_at, cause=cause,
                data=data, index=self.audits,
            )
        )

    def _keep(self, command: Cancel) -> None:
        """The cancel waits for its request, and the log says so; the oldest make room."""
        cancels, now_ms = self.state.cancels, self.state.clock_ms
        key = command.key
        kept = KeptCancel(key, now_ms, command.actor, command.reason, command.cause or NO_CAUSE)
        cancels.keep(kept)
        self._note(
            EventKind.CANCEL_KEPT, key, None, None, "", due_at=kept.kept_until, cause=kept.cause,
            data={"actor": kept.actor, "reason": kept.reason},
        )
        while (surplus := cancels.too_many(key[0])) is not None:
            self.forget(surplus, Reason.TOO_MANY_CANCELS)
            self.output.forgotten_cancels += 1

    def forget(self, kept: KeptCancel, reason: Reason) -> None:
        """A kept cancel goes, and the log says so."""
        self.state.cancels.drop(kept.key)
        self.decide(kept.key, None, Forget(reason, kept.cause))

    def _keep_signal(self, job: Job | None, command: Signal) -> None:
        """The signal waits for somebody who waits for it, and the log says so."""
        signals, key = self.state.signals, command.key
        kept = KeptSignal(
            (key[0], key[1], command.name), self.state.clock_ms, command.value, command.actor,
            command.cause,
        )
        state = None if job is None else job.state
        if signals.has_room(kept):
            signals.keep(kept)
            self._note(
                EventKind.SIGNAL_KEPT, key, job, state, "", due_at=kept.kept_until,
                cause=kept.cause, data=suspensions.signal_data(kept.key[2], kept.value, kept.actor),
            )
        else:
            self._note(
                EventKind.COMMAND_REFUSED, key, job, state, "", reason=Reason.TOO_MANY_SIGNALS,
                cause=kept.cause, data={"name": command.name, "actor": command.actor},
            )

    def forget_signal(self, kept: KeptSignal) -> None:
        """Nobody has waited for it within its day, and the log says so."""
        self.state.signals.drop(kept.job, kept.key[2])
        job = self.state.jobs.get(kept.job)
        reason = Reason.UNKNOWN_JOB if job is None else Reason.NOT_AWAITED
        data = {"name": kept.key[2], "actor": kept.actor}
        self.decide(kept.job, job, Forget(reason, kept.cause, data))

    def rebuild(self) -> None:
        """Makes all indices anew, after a restore or an undo."""
        for policy in self._policies.all:
            policy.clear()
        self.schedule.rebuild(self.state.jobs.values(), self.state.clock_ms, self._follow)

    def _follow(self, job: Job) -> None:
        for policy in self._policies.of(job, job.spec, self.state.job_type(job.spec.type)):
            policy.place(self.turn, None, job)

    def resolve(self, key: JobKey, job: Job, job_type: JobType | None) -> None:
        """The wait for a type is over; what may start now comes before what is asked later."""
        waiting = self.schedule.wait_lists.get((UNKNOWN_TYPE, job.spec.type))
        if waiting is not None:
            waiting.drop(key)
        self.decide(key, job, Resolve(job_type))
        self.schedule.ready_if_due(self.state.jobs[key], self.state.clock_ms)

    def note_late(self, key: JobKey, cause: Cause) -> None:
        """Something came for a job that waits for it no more: its story says so, if it has one."""
        job = self.state.jobs.get(key)
        ended = None if job is not None else self.state.ended(key)
        if job is not None or ended is not None:
            rejected = Rejected(Reason.NO_LONGER_AWAITED, EventKind.OUTCOME_IGNORED)
            if ended is not None:
                rejected.of(ended.state)
            self._record_rejection(key, job, Forget(Reason.NO_LONGER_AWAITED, cause), rejected)

    def resolve_known(self, key: JobKey) -> None:
        """A redriven job may have waited in vain for a type that is known by now."""
        job = self.state.jobs.get(key)
        if job is not None and waits_for_type(job):
            job_type = self.state.job_type(job.spec.type)
            if job_type is not None:
                self.resolve(key, job, job_type)
