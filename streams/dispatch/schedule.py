"""Who is next and when to look again: the indices over a partition's jobs.

Owns the waiting queues, the heap of timers, the lists of jobs that wait for something else than a
slot, and what is in flight. Refuses to decide: it names jobs, `tidemill.streams.partition` asks the
core.

All of it can be built from the jobs (`rebuild`), so it is neither written nor undone: an entry
whose job has moved on is dropped when it comes up.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import Final

from tidemill.schemas.words import IN_FLIGHT_STATES, TERMINAL_STATES, State, direct
from tidemill.streams.dispatch.ready_queue import ReadyQueue
from tidemill.streams.dispatch.slot_pool import Groups, SlotPool
from tidemill.streams.dispatch.wait_list import WaitList
from tidemill.streams.job import (
    HANDED_BACK,
    NO_WORKER,
    SUSPENSION,
    UNKNOWN_TYPE,
    Job,
    JobKey,
    Spec,
    WaitKey,
)

# Entries of jobs that have moved on, beside as many as there are jobs, before they are cleared out.
STALE_MAX: Final = 10_000


@direct
class TimerKind(IntEnum):
    """What a timer is about."""

    DUE = 1  # run_at or a backoff has passed: the job may be dispatched
    JOB = 2  # a policy asked for it
    LIST = 3  # what a list of jobs waits for may be there


_PENDING: Final = State.PENDING
_SCHEDULED: Final = State.SCHEDULED
_RETRYING: Final = State.RETRYING
_AWAITING: Final = State.AWAITING
_IN_FLIGHT: Final = IN_FLIGHT_STATES


class Schedule:
    """The indices of one partition."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        """`kinds`: how the handler of a type runs; its owner calls `rebuild` when that changes."""
        self._kinds = kinds
        self._groups: dict[str, Groups] = {}  # by queue, as its workers told last
        self._split: dict[str, Groups] = {}  # those queues that need more than the group ""
        self.pools: dict[tuple[str, str, str], SlotPool] = {}
        self.wait_lists: dict[WaitKey, WaitList] = {}
        self._timers: list[tuple[int, int, TimerKind, str, JobKey | WaitKey]] = []
        self._timer_count = 0

    def next_timer_at(self) -> int | None:
        """Epoch ms of the earliest timer, None when there is none."""
        return self._timers[0][0] if self._timers else None

    def pop_due(self, now_ms: int) -> tuple[str, JobKey | WaitKey] | None:
        """The earliest timer that is due, None when none is: the policy that it is for and the name
        of a job or a list. "": the job's own instant has come."""
        while self._timers and self._timers[0][0] <= now_ms:
            at_ms, _, kind, policy, name = heapq.heappop(self._timers)
            if kind is not TimerKind.LIST or self._is_lists_timer(name, at_ms):
                return policy, name
        return None

    def _is_lists_timer(self, name: WaitKey, at_ms: int) -> bool:
        found = self.wait_lists.get(name)
        return found is not None and found.wakes_at == at_ms

    def set_wake(self, name: WaitKey, at_ms: int) -> None:
        """The list is looked at then, and not when it was to be looked at before."""
        self.wait_lists[name].wakes_at = at_ms
        self._push(at_ms, TimerKind.LIST, name[0], name)

    def set_timer(self, at_ms: int, policy: str, key: JobKey) -> None:
        """A timer of a policy for a job."""
        self._push(at_ms, TimerKind.JOB, policy, key)

    def set_due(self, at_ms: int, key: JobKey) -> None:
        """The job may be dispatched then."""
        self._push(at_ms, TimerKind.DUE, "", key)

    def _push(self, at_ms: int, kind: TimerKind, policy: str, name: JobKey | WaitKey) -> None:
        self._timer_count += 1
        heapq.heappush(self._timers, (at_ms, self._timer_count, kind, policy, name))

    def pool(self, name: tuple[str, str, str]) -> SlotPool:
        """The pool of that name, which is made when it is asked for first."""
        found = self.pools.get(name)
        if found is None:
            found = self.pools[name] = SlotPool()
        return found

    def name_of(self, spec: Spec) -> tuple[str, str, str]:
        """The name of the pool where a job waits and flies."""
        kind = self._kinds.get(spec.type, "async")
        if self._split:
            groups = self._split.get(spec.queue)
            if groups is not None:
                return spec.queue, kind, groups.get(spec.type, spec.type)
        return spec.queue, kind, ""

    def pool_of(self, spec: Spec) -> SlotPool:
        return self.pool(self.name_of(spec))

    def regroup(self, queue: str, groups: Groups, jobs: Mapping[JobKey, Job]) -> None:
        """The living workers of a queue run other types than before: its jobs change pools."""
        before = self._groups.get(queue, {})
        self._groups[queue] = groups
        was_split = queue in self._split
        self.note_types()
        if was_split:
            types = before.keys() | groups.keys()
            left = {before.get(t, t) for t in types if before.get(t, t) != groups.get(t, t)}
        else:
            left = {""} if queue in self._split else set()
        for name in [name for name in self.pools if name[0] == queue and name[2] in left]:
            self._sort_out(name, jobs)

    def note_types(self) -> None:
        """Other types are known than before: no job of a new one is in a pool yet."""
        self._split = {
            queue: groups
            for queue, groups in self._groups.items()
            if any(groups.get(type) != "" for type in self._kinds)
        }

    def _sort_out(self, name: tuple[str, str, str], jobs: Mapping[JobKey, Job]) -> None:
        """Moves the jobs of a pool that belong to another one by now."""
        pool = self.pools[name]
        for key in list(pool.in_flight):
            job = jobs.get(key)
            if job is not None and self.name_of(job.spec) != name:
                del pool.in_flight[key]
                self.pool_of(job.spec).in_flight[key] = None
        moving: list[Job] = []

        def stays(key: JobKey) -> bool:
            job = jobs.get(key)
            if job is None or not _is_in_line(job, name[0]):
                return False
            if self.name_of(job.spec) == name:
                return True
            moving.append(job)
            return False

        pool.waiting.keep(stays)
        for job in moving:
            self.make_ready(job, is_first=True)

    def make_ready(self, job: Job, *, is_first: bool = False) -> None:
        """The job waits for a slot."""
        spec = job.spec
        waiting = self.pool_of(spec).waiting
        waiting.push(spec.key, spec.priority, number=spec.number if is_first else None)

    def place(self, before: Job | None, job: Job) -> None:
        """Puts a job where its new state belongs. Called for each decision, and on a restore."""
        state = job.state
        if before is not None and before.state in _IN_FLIGHT:
            if state in _IN_FLIGHT:
                return
            self.pool_of(before.spec).in_flight.pop(before.spec.key, None)
        if state is _PENDING:
            self.make_ready(job, is_first=before is not None and not before.is_refused)
        elif state in _IN_FLIGHT:
            self.pool_of(job.spec).in_flight[job.spec.key] = None
        elif state is _SCHEDULED or state is _RETRYING:
            self._place_timed(before, job)
        elif state is _AWAITING and job.due_at is not None:
            self.set_timer(job.due_at, SUSPENSION, job.key)

    def _place_timed(self, before: Job | None, job: Job) -> None:
        due_at = job.due_at or 0
        name = job.waits_for
        if name is None or name[0] == HANDED_BACK[0]:
            self.set_due(due_at, job.key)
        elif name[0] != NO_WORKER:
            self._hold_back(job, name, due_at)
        elif before is None:
            self.make_ready(job)

    def _hold_back(self, job: Job, name: WaitKey, due_at: int) -> None:
        """The job waits in a list. A job whose type is unknown has a timer of its own; of the
        others only the first one needs one."""
        waiting = self.wait_lists.get(name)
        if waiting is None:
            waiting = self.wait_lists[name] = WaitList()
        if name[0] == UNKNOWN_TYPE:
            self.set_timer(due_at, UNKNOWN_TYPE, job.key)
        elif not len(waiting) and job.due_at is not None:  # else its policy wakes it
            self.set_wake(name, due_at)
        waiting.add(job.key, job.spec.number)

    def ready_if_due(self, job: Job, now_ms: int) -> None:
        """A job whose instant has passed takes its place in line at once, not at the next tick:
        what is asked for in between must not overtake it."""
        if job.state is _SCHEDULED and _waits_for_its_instant(job) and (job.due_at or 0) <= now_ms:
            self.make_ready(job)

    def rebuild(
        self, jobs: Iterable[Job], now_ms: int, follow: Callable[[Job], None] | None = None
    ) -> None:
        """Builds all indices anew, `follow` those of others; limits and slots stay, they come from
        heartbeats."""
        self.note_types()
        for pool in self.pools.values():
            pool.waiting = ReadyQueue()
            pool.in_flight = {}
        self.wait_lists = {}
        self._timers = []
        for job in sorted(jobs, key=lambda job: job.spec.number):
            self.place(None, job)
            if follow is not None:
                follow(job)
            self.ready_if_due(job, now_ms)
        # A job's own due_at is an estimate from when others were before it: ask the limit at once.
        self._timers = [timer for timer in self._timers if timer[2] is not TimerKind.LIST]
        heapq.heapify(self._timers)
        for name in self.wait_lists:
            if name[0] != UNKNOWN_TYPE:
                self.set_wake(name, now_ms)

    def clear_out(self, jobs: Mapping[JobKey, Job]) -> None:
        """Drops the entries of jobs that have moved on, when there are many. They would be dropped
        when they come up, but that may be in years: a job ends long before its `expires_at`."""
        room = 2 * len(jobs) + STALE_MAX
        if len(self._timers) > room + len(jobs):
            self._timers = [
                timer for timer in self._timers
                if self._is_wanted(jobs, timer[0], timer[2], timer[4])
            ]
            heapq.heapify(self._timers)
        if sum([len(pool.waiting) for pool in self.pools.values()]) > room:
            for (queue, _, _), pool in self.pools.items():
                self.drop_moved_on(pool, queue, jobs)
        for name, pool in list(self.pools.items()):
            if not len(pool.waiting) and not pool.in_flight and not pool.limit.slots:
                del self.pools[name]  # a request may name any queue
        for wait_key, waiting in self.wait_lists.items():
            if len(waiting) > room:
                wanted = {key for key in waiting if is_waiting(jobs.get(key), wait_key)}
                waiting.keep(wanted.__contains__)

    def drop_moved_on(self, pool: SlotPool, queue: str, jobs: Mapping[JobKey, Job]) -> None:
        """The same for one pool."""
        wanted = {key for key in pool.waiting if _is_in_line(jobs.get(key), queue)}
        pool.waiting.keep(wanted.__contains__)

    def _is_wanted(
        self, jobs: Mapping[JobKey, Job], at_ms: int, kind: TimerKind, name: JobKey | WaitKey
    ) -> bool:
        if kind is TimerKind.LIST:
            return self._is_lists_timer(name, at_ms)
        job = jobs.get(name)
        if job is None or job.state in TERMINAL_STATES:
            return False
        return at_ms == (job.due_at or 0) or at_ms == job.spec.expires_at


def _is_in_line(job: Job | None, queue: str) -> bool:
    """Whether it may be waiting for a slot of the queue."""
    if job is None or job.spec.queue != queue:
        return False
    if job.state is _AWAITING:
        return False
    return job.state not in TERMINAL_STATES and job.state not in _IN_FLIGHT


def _waits_for_its_instant(job: Job) -> bool:
    return job.waits_for is None or job.waits_for[0] == HANDED_BACK[0]


def is_waiting(job: Job | None, name: WaitKey) -> bool:
    """Whether it still waits for that."""
    return job is not None and job.state is _SCHEDULED and job.waits_for == name


def waits_for_type(job: Job | None) -> bool:
    """Whether no worker has told of its type yet."""
    if job is None or job.state is not _SCHEDULED or job.waits_for is None:
        return False
    return job.waits_for[0] == UNKNOWN_TYPE


def may_dispatch(job: Job, queue: str, now_ms: int) -> bool:
    """Whether it waits for a slot of the queue, and for nothing else."""
    if job.spec.queue != queue:
        return False
    if job.state is _PENDING:
        return True
    if job.state is _RETRYING:
        return (job.due_at or 0) <= now_ms
    if job.state is _SCHEDULED:
        if _waits_for_its_instant(job):
            return (job.due_at or 0) <= now_ms
        # Of who waits in a list `due_at` is an estimate: what holds the job back is asked again.
        return not waits_for_type(job)
    return False
