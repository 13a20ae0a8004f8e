"""One ledger partition: records in, one group of records out. The whole engine, without I/O.

Owns the order of a group's work: take each input once, fire timers, rescue, dispatch, seal.
Refuses to know Faust, Kafka clients, threads and the clock: `now_ms` comes in, records go out, and
the caller says whether their transaction was committed (`commit`) or not (`rollback`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from tidemill.schemas.batch_builder import OutGroup
from tidemill.schemas.topics import Topics
from tidemill.schemas.wire import Definition
from tidemill.schemas.words import TERMINAL_STATES, Reason, State
from tidemill.streams.commands import Dispatch, Obey, Rescue
from tidemill.streams.decision import cost_of
from tidemill.streams.dispatch.schedule import may_dispatch
from tidemill.streams.dispatch.slot_pool import Groups, SlotPoolName
from tidemill.streams.intake import InRecord, Intake
from tidemill.streams.job import HANDED_BACK, JobKey, WaitKey
from tidemill.streams.messages import Messages
from tidemill.streams.output import DeadLetter
from tidemill.streams.partitioner import Partitioner
from tidemill.streams.policies.base import ask_start
from tidemill.streams.policies.rescue import NO_END
from tidemill.streams.processor import Processor
from tidemill.streams.stalls import NO_STALLS, Stall
from tidemill.streams.store.jobs import FORGET_AT_ONCE_MAX
from tidemill.streams.store.position import input_name
from tidemill.streams.store.state import PartitionState

SWEEP_EVERY_MS: Final = 1_000  # ms between two looks at what is in flight
FORGET_EVERY_MS: Final = 5_000  # ms between two looks at what may be forgotten
FORGET_AGAIN_MS: Final = 50  # the same while there is more of it than one group may forget
# Decisions of one kind in one group (timers, rescues, dispatches and deferrals, jobs whose type is
# known now): a group with more would outlast its transaction. The rest is for the next group.
DECISIONS_MAX: Final = 2_000
_DISPATCH: Final = Dispatch()
_NOBODY: Final[Mapping[str, str]] = {}


class Capacity(NamedTuple):
    """What the heartbeats of all workers say of the slots of one pool."""

    slots: int
    free: int
    workers: int
    partitions: tuple[int, ...]  # of the queue's ready topic, those of workers with free slots
    heartbeat_version: int = 0  # by which beats: another number when one has been heard since


class Partition:
    """The engine of one partition. Not thread-safe: one group at a time."""

    def __init__(
        self,
        number: int,
        partitions: int,
        topics: Topics,
        state: PartitionState,
        *,
        partitioner: Partitioner | None = None,
    ) -> None:
        self.number = number
        self._partitions = partitions
        self.state = state
        self._processor = Processor(number, topics, state)
        self.schedule = self._processor.schedule
        self._topics = topics
        self._turn = self._processor.turn
        self._rescue = state.policies.rescue
        self._unknown_type = state.policies.unknown_type
        self._absences = self._unknown_type.absences
        self.ticking = state.policies.schedules.ticking
        self._gather = state.policies.gather
        partitioner = partitioner or Partitioner(partitions)
        self.ticking.settle(number, partitioner)
        self.messages = Messages(
            number, partitions, topics, self._processor, partitioner, state.policies.all
        )
        self._intake = Intake(
            number, topics, self._processor, partitioner, self._rescue.stalls, self.messages
        )
        self._policies = {one.id: one for one in state.policies.all}
        self._groups: Mapping[str, Groups] = {}
        self._capacity: dict[SlotPoolName, Capacity] = {}
        self._swept_at = 0
        self._forgot_at = 0
        self._has_more = False  # the last tick left something that was due
        self._first_line = 0  # which one is dispatched first
        self._followed = 0  # what follow-ups have counted as in this group

    # --- what the edge tells ---

    def restored(self, now_ms: int) -> None:
        """All rows are loaded. Every lease gets its full time from now on."""
        self.state.loaded()
        self._rebuild()
        # The partition's clock may be ahead of ours: it was another machine's.
        self._rescue.begin_leases(max(now_ms, self.state.clock_ms))

    def set_groups(self, told: Mapping[str, Groups]) -> None:
        """By queue: which types its living workers run, and which of them the same workers run.
        Comes before `set_capacity`, which has a room for each of those groups."""
        if told is self._groups:
            return
        before, self._groups = self._groups, told
        for queue, groups in told.items():
            if before.get(queue) != groups:
                self.schedule.regroup(queue, groups, self.state.jobs)
        self._absences.set_told(told, self.state.clock_ms)

    def set_capacity(self, capacity: Mapping[SlotPoolName, Capacity]) -> None:
        """Free slots and ready partitions by pool, from the workers' heartbeats."""
        for name in self._capacity.keys() - capacity.keys():
            self.schedule.pool(name).limit.set_slots(0, free=0)
        self._capacity = dict(capacity)
        for name, room in capacity.items():
            self.schedule.pool(name).limit.set_slots(
                room.slots, free=room.free, partitions=self._partitions,
                heartbeat_version=room.heartbeat_version,
            )

    def set_workers(
        self,
        alive: Mapping[str, int],
        *,
        heard_since_ms: int = 0,
        heard_until_ms: int = NO_END,
        former_ends: Mapping[str, str] = _NOBODY,
        stalls: Mapping[str, Stall] = NO_STALLS,
    ) -> None:
        """The incarnation of each living worker, and between which instants (epoch ms) all that
        workers said was heard: silence counts only there. `former_ends`: how the process before a
        worker's present one ended, where that is known. `stalls`: the last one of each worker that
        stood still."""
        if self._rescue.is_news(alive):
            self._swept_at = 0  # one that has come back: what the former process ran goes on now
        since_ms = self._rescue.set_workers(
            alive, heard_since_ms=heard_since_ms, heard_until_ms=heard_until_ms,
            former_ends=former_ends, stalls=stalls,
        )
        self._absences.set_heard(since_ms, heard_until_ms)

    # --- a group ---

    def begin(self, now_ms: int) -> int:
        """Starts a group; returns the partition's instant, which never goes back."""
        self._unknown_type.begin(DECISIONS_MAX)
        return self.state.begin(now_ms)

    def take(self, topic: str, partition: int, record: InRecord) -> bool:
        """Decides one input record. False when it had been decided before."""
        return self._take(input_name(topic, partition, self.number), topic, partition, record)

    def _take(self, name: str, topic: str, partition: int, record: InRecord) -> bool:
        if record.offset <= self.state.applied.get(name, -1):
            return False
        self._intake.take(topic, partition, record)
        self.state.applied[name] = record.offset
        return True

    def take_all(self, topic: str, partition: int, records: Sequence[InRecord]) -> bool:
        """`take` of each. False when the rest is for the next group, as those before have led to
        all that a group may hold: it is to come again with the whole of `records`."""
        name = input_name(topic, partition, self.number)
        processor = self._processor
        for record in records:
            if processor.spent >= DECISIONS_MAX:
                return False
            self._take(name, topic, partition, record)
        return True

    def note_lost(self, topic: str, partition: int, next_offset: int, what: str) -> None:
        """Records of an input are gone, or the topic was made again: a dead letter tells so, and
        reading goes on at `next_offset`."""
        name = input_name(topic, partition, self.number)
        self._intake.note_lost(topic, partition, self.state.applied.get(name, -1) + 1, what)
        self.state.applied[name] = next_offset - 1

    def pass_over(self, topic: str, partition: int, next_offset: int) -> None:
        """No record waits below `next_offset`: what is there are markers of transactions.

        Without this a topic whose last record is followed by a marker would look, once retention
        has emptied it, as if records had been deleted before they were applied.
        """
        name = input_name(topic, partition, self.number)
        if next_offset - 1 > self.state.applied.get(name, -1):
            self.state.applied[name] = next_offset - 1

    def define(self, definition: Definition) -> None:
        """Takes a type's definition; jobs that waited for it go on."""
        known = self.state.definitions.get(definition.type)
        if known is definition:
            return
        if known == definition:
            self.state.definitions[definition.type] = definition  # quicker to know next time
            return
        before = self.state.job_type(definition.type)
        self.state.define(definition)
        if known is None:
            self.schedule.note_types()
        elif known.runs_as != definition.runs_as:
            self._rebuild()  # its jobs wait for other slots now
        after = self.state.job_type(definition.type)
        if after is not None:
            for policy in self.state.policies.all:
                policy.define(self._turn, before, after)

    def tick(self) -> None:
        """Timers, rescues, forgetting, then dispatch: what time alone brings.

        Each of it so far as a group may hold; what is left makes `next_tick_at` say "at once".
        """
        now_ms = self.state.clock_ms
        self._has_more = False
        # What follows from the group's inputs counts, as it takes time of the same transaction.
        self._followed = self._processor.take_spent()
        left = DECISIONS_MAX - self._followed
        while left > 0 and (due := self.schedule.pop_due(now_ms)) is not None:
            left -= self._fire(*due) + self._take_followed()
        spent = self.ticking.work(self._turn, left)
        self._followed += spent + self._processor.take_spent()
        self._has_more = self.ticking.has_more
        self._gather.parents.work(self._turn, DECISIONS_MAX - self._followed)
        self._followed += self._processor.take_spent()
        if self._unknown_type.resolve_waiting(self._turn):
            self._has_more = True
        if now_ms - self._swept_at >= SWEEP_EVERY_MS:
            self._sweep(now_ms)
        if now_ms - self._forgot_at >= FORGET_EVERY_MS:
            has_more = self._forget_kept(now_ms)
            has_more = self.state.forget_old(now_ms) or has_more
            self._forgot_at = now_ms - (FORGET_EVERY_MS - FORGET_AGAIN_MS if has_more else 0)
        self._absences.work(self._turn)
        self._dispatch_all(now_ms)

    def next_tick_at(self) -> int:
        """Epoch ms at which `tick` has something to do even if nothing arrives."""
        if self._has_more:
            return 0
        sweep_at = min(
            self._swept_at + SWEEP_EVERY_MS, self._absences.next_at(), self.ticking.next_at()
        )
        gather_at = self._gather.parents.next_at()
        if gather_at is not None:
            sweep_at = min(sweep_at, gather_at)
        timer_at = self.schedule.next_timer_at()
        return sweep_at if timer_at is None else min(sweep_at, timer_at)

    def seal(self) -> OutGroup:
        """The records of the group's one transaction; empty when nothing changed.

        They are of one use: `commit` and `rollback` begin the next ones.
        """
        output = self._processor.output
        self._gather.members.send(self._turn)
        if not self.state.has_changes and not len(output.group()):
            return OutGroup()
        for name, room in self._capacity.items():
            jobs_a_pack = max(1, room.slots // max(1, 2 * room.workers))
            output.pack_ready(
                name, room.partitions, workers=room.workers, jobs_a_pack=jobs_a_pack
            )
        self.state.write_rows(output.state)
        return output.group()

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """What the group at hand has put on jobs.dead; to be told once it is committed."""
        return self._processor.output.dead_letters

    @property
    def forgotten_cancels(self) -> int:
        """Cancels that the group at hand has forgotten early; to be told as `dead_letters`."""
        return self._processor.output.forgotten_cancels

    def commit(self) -> None:
        """The transaction is committed."""
        self.state.commit()
        self._processor.output.clear()

    def rollback(self) -> None:
        """The transaction was aborted: state and indices are as before the group."""
        self.state.rollback()
        self._processor.output.clear()
        self._gather.members.ends = {}
        self._rebuild()

    # --- time ---

    def _forget_kept(self, now_ms: int) -> bool:
        """Forgets cancels and signals that nobody asked for in their day. True: there may be more.
        """
        self._processor.audits = 0
        cancels = self.state.cancels.too_old(now_ms, at_most=FORGET_AT_ONCE_MAX)
        for cancel in cancels:
            self._processor.forget(cancel, Reason.UNKNOWN_JOB)
        signals = self.state.signals.too_old(now_ms, at_most=FORGET_AT_ONCE_MAX)
        for signal in signals:
            self._processor.forget_signal(signal)
        return max(len(cancels), len(signals)) >= FORGET_AT_ONCE_MAX

    def _rebuild(self) -> None:
        self._processor.rebuild()
        self._unknown_type.find_known(self._turn)

    def _fire(self, policy: str, name: JobKey | WaitKey) -> int:
        """What a timer is for; how many decisions it counts as."""
        if policy:
            self._policies[policy].on_timer(self._turn, name)
            self._processor.drain()
            return max(1, self._processor.take_spent())
        job = self.state.jobs.get(name)
        if job is None or job.state in TERMINAL_STATES:
            return 1
        is_due = job.due_at is not None and job.due_at <= self.state.clock_ms
        if is_due and job.state in (State.SCHEDULED, State.RETRYING):
            self.schedule.make_ready(job, is_first=job.waits_for == HANDED_BACK)
        return cost_of(job)

    def _sweep(self, now_ms: int) -> None:
        """Rescues attempts whose worker is gone, and dispatches that reached nobody."""
        left = DECISIONS_MAX
        served = {name.queue for name in self._capacity}
        for name, pool in list(self.schedule.pools.items()):
            has_workers = name[0] in served
            for key in list(pool.in_flight):
                job = self.state.jobs.get(key)
                if job is not None:
                    reason = self._rescue.reason_to_rescue(job, now_ms, has_workers=has_workers)
                    if reason is not None:
                        detail = self._rescue.detail_of(job, reason)
                        self._processor.decide(key, job, Rescue(reason, detail))
                        left -= cost_of(job) + self._take_followed()
                if left <= 0:
                    self._has_more = True
                    return
        self._swept_at = now_ms
        self.schedule.clear_out(self.state.jobs)
        self._absences.look(self._turn)

    def _take_followed(self) -> int:
        spent = self._processor.take_spent()
        self._followed += spent
        return spent

    def _dispatch_all(self, now_ms: int) -> None:
        names = list(self._capacity)
        if len(names) > 1:
            # None of them gets all that a group may hold each time.
            self._first_line = (self._first_line + 1) % len(names)
            names = names[self._first_line :] + names[: self._first_line]
        self._take_followed()
        left = DECISIONS_MAX - self._followed
        for name in names:
            left = self._dispatch(name, now_ms, left)

    def _dispatch(self, name: SlotPoolName, now_ms: int, left: int) -> int:
        """Takes waiting jobs in their order while the window has room. How many of `left` decisions
        are left."""
        pool = self.schedule.pool(name)
        waiting = pool.waiting
        if not len(waiting) or not self._capacity[name].partitions:
            return left
        room = pool.limit.allowance(len(pool.in_flight), now_ms)
        unknown = self.state.policies.of_unknown
        while room > 0:
            if left <= 0:
                self._has_more = True
                break
            key = waiting.pop()
            if key is None:
                break
            job = self.state.jobs.get(key)
            if job is None or not may_dispatch(job, name.queue, now_ms):
                left -= 1
                continue
            left -= cost_of(job)
            job_type = self.state.job_type(job.spec.type)
            policies = unknown if job_type is None else job_type.policies_for(job.spec)
            if policies:
                verdict = ask_start(policies, self._turn, job)
                if verdict.kind is not None:
                    self._processor.decide(key, job, Obey(verdict))
                    continue
            self._processor.decide(key, job, _DISPATCH)
            room -= 1
            left -= self._take_followed()
        pool.limit.note_use(len(pool.in_flight))
        return left
