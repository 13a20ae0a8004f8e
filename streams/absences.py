"""Jobs that nobody can run: since when, what their story says of that, and when they are given up.

Owns three questions about the living workers: which queues have some, since when, and since when a
type is missing among those of a queue. Refuses to know heartbeats: its owner says what workers told
and between which instants all of that was heard.

The rule: a type that no living worker of the queue has had for 30 s, while another worker of that
queue lives, is unknown, whatever was defined before. Its jobs wait for those 30 s and then fail,
redrivable. A queue without living workers fails nothing, and no time counts that was not heard.

Nobody else waits for any of this. Such jobs stand in lines of their own
(`tidemill.streams.dispatch.schedule`), and what happens to them happens a few at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tidemill.schemas.words import Reason
from tidemill.streams.commands import Obey
from tidemill.streams.decision import cost_of
from tidemill.streams.dispatch.schedule import may_dispatch, waits_for_type
from tidemill.streams.dispatch.slot_pool import Groups
from tidemill.streams.job import NO_WORKER, UNKNOWN_TYPE, Job, JobKey
from tidemill.streams.policies.base import wait
from tidemill.streams.policies.rescue import NO_END

if TYPE_CHECKING:
    from tidemill.streams.turn import Turn

UNKNOWN_TYPE_WAIT_MS: Final = 30_000  # ms that a job waits for a worker to tell of its type
# ms of absence before a job's story tells of it. A worker tells what it runs every two seconds, and
# a restart of one among several takes a second or two: nothing of that is worth an event a job.
TELL_AFTER_MS: Final = 3_000
NOT_SERVED_MS: Final = 30_000  # ms without a living worker before a queue counts as not served
PORTION: Final = 50  # such jobs dealt with at once, a twentieth of a second at most
PORTION_EVERY_MS: Final = 100  # ms between two portions: the processor is for those that can run
LOOK_AGAIN_MS: Final = 5_000  # ms until a job of an unknown type is looked at again
LOOKED_AT_MAX: Final = 20_000  # jobs of one line looked at in one sweep
# Jobs of a queue without workers whose story tells so, in each partition: after a night without
# workers a backlog of millions would else be told of one by one.
NOT_SERVED_TOLD_MAX: Final = 1_000
_TYPE_NOT_RUN: Final = (NO_WORKER, Reason.TYPE_NOT_RUN.value)
ANY_QUEUE: Final = ""  # of a job whose type is unknown and that names no queue


class Absences:
    """What one partition knows of who is missing. Volatile: a restore starts it anew."""

    def __init__(self) -> None:
        self._told: Mapping[str, Groups] = {}
        self._lives_since: dict[str, int] = {}
        self._gone_at: dict[tuple[str, str], int] = {}  # (queue, type) that was there before
        self._dead_since: dict[str, int] = {}  # queues with jobs and without workers
        self._heard_since = 0
        self._heard_until = NO_END
        self._due: deque[JobKey] = deque()
        self._worked_at = 0

    # --- what the edge tells ---

    def set_heard(self, since_ms: int, until_ms: int) -> None:
        """Between which instants all that workers said was heard."""
        self._heard_since = since_ms
        self._heard_until = until_ms

    def set_told(self, told: Mapping[str, Groups], now_ms: int) -> None:
        """What living workers have told by now, by queue."""
        before, self._told = self._told, told
        lives_since = self._lives_since
        queues = {*told, ANY_QUEUE} if told else set()
        for queue in lives_since.keys() - queues:
            del lives_since[queue]
        for queue in queues:
            lives_since.setdefault(queue, now_ms)
            self._dead_since.pop(queue, None)
        for queue, groups in told.items():
            for type_name in before.get(queue, {}).keys() - groups.keys():
                self._gone_at[queue, type_name] = now_ms
            if self._gone_at:
                for type_name in groups:
                    self._gone_at.pop((queue, type_name), None)

    # --- how long ---

    def missing_ms(self, queue: str, type_name: str, now_ms: int) -> int:
        """How long workers of the queue have lived of which none had the type; -1 when one has it,
        or none lives."""
        lives_since = self._lives_since.get(queue)
        if lives_since is None or self._has(queue, type_name):
            return -1
        since = max(lives_since, self._gone_at.get((queue, type_name), 0), self._heard_since)
        return min(now_ms, self._heard_until) - since

    def _has(self, queue: str, type_name: str) -> bool:
        if queue == ANY_QUEUE:
            return any(type_name in groups for groups in self._told.values())
        return type_name in self._told[queue]

    def _not_served_ms(self, queue: str, now_ms: int) -> int:
        """How long the queue has had no living worker; -1 when it has one."""
        if queue in self._told:
            return -1
        since = max(self._dead_since.setdefault(queue, now_ms), self._heard_since)
        return min(now_ms, self._heard_until) - since

    def _reason_of(self, queue: str, type_name: str, now_ms: int) -> Reason | None:
        """Why nobody can run such a job, once that is worth telling."""
        if self._not_served_ms(queue, now_ms) >= NOT_SERVED_MS:
            return Reason.QUEUE_NOT_SERVED
        if self.missing_ms(queue, type_name, now_ms) >= TELL_AFTER_MS:
            return Reason.TYPE_NOT_RUN
        return None

    # --- a few at a time ---

    def add(self, key: JobKey) -> None:
        """A job has waited long enough for its type to be known."""
        self._due.append(key)

    def next_at(self) -> int:
        """Epoch ms of the next portion."""
        return self._worked_at + PORTION_EVERY_MS if self._due else NO_END

    def forget(self) -> None:
        """The indices are made anew, and with them the list of jobs to deal with."""
        self._due.clear()

    def look(self, turn: Turn) -> None:
        """Looks through the lines that nobody serves, for jobs of which there is news."""
        if self._due:
            return
        jobs, now_ms = turn.jobs, turn.now_ms
        waiting = [one for one in turn.schedule.pools.items() if len(one[1].waiting)]
        queues = {name[0] for name, _ in waiting}
        for queue in self._dead_since.keys() - queues:
            del self._dead_since[queue]
        for (queue, _, group), pool in waiting:
            reason = self._reason_of(queue, group, now_ms)
            # A common line has no type of its own; what is in it is run as soon as there is room.
            if reason is None or (reason is Reason.TYPE_NOT_RUN and group == ""):
                continue
            is_served = reason is Reason.TYPE_NOT_RUN
            looked_at = pool.waiting.some(LOOKED_AT_MAX if is_served else NOT_SERVED_TOLD_MAX)
            left = 0
            for key in looked_at:
                job = jobs.get(key)
                if job is None or not may_dispatch(job, queue, now_ms):
                    left += 1
                elif not _is_told(job, reason) or (is_served and self._is_over(job, now_ms)):
                    self._due.append(key)
            if 2 * left > len(looked_at):
                turn.schedule.drop_moved_on(pool, queue, jobs)

    def work(self, turn: Turn) -> None:
        """Deals with a portion of what was found."""
        now_ms = turn.now_ms
        if not self._due or now_ms - self._worked_at < PORTION_EVERY_MS:
            return
        self._worked_at = now_ms
        left = PORTION
        while left > 0 and self._due:
            key = self._due.popleft()
            job = turn.job(key)
            if job is None:
                continue
            left -= cost_of(job)
            if waits_for_type(job):
                self._resolve(turn, key, job)
            elif may_dispatch(job, job.spec.queue, now_ms):
                self._tell(turn, key, job)

    def _resolve(self, turn: Turn, key: JobKey, job: Job) -> None:
        """A job of a type that nobody has told of, after its wait."""
        spec, now_ms = job.spec, turn.now_ms
        job_type = turn.job_type(spec.type)
        missing_ms = self.missing_ms(spec.queue, spec.type, now_ms)
        if job_type is not None or missing_ms >= UNKNOWN_TYPE_WAIT_MS:
            turn.resolve(key, job, job_type)
        else:
            turn.set_timer(UNKNOWN_TYPE, now_ms + LOOK_AGAIN_MS, key)

    def _tell(self, turn: Turn, key: JobKey, job: Job) -> None:
        """The job's story says why it waits; after its wait it is given up."""
        spec, now_ms = job.spec, turn.now_ms
        reason = self._reason_of(spec.queue, spec.type, now_ms)
        if reason is None:
            return
        if not _is_told(job, reason):
            due_at = self._given_up_at(job, now_ms) if reason is Reason.TYPE_NOT_RUN else None
            told = wait((NO_WORKER, reason.value), reason, due_at)
            turn.decide(key, job, Obey(told))
            job = turn.jobs[key]
        if reason is Reason.TYPE_NOT_RUN and self._is_over(job, now_ms):
            turn.resolve(key, job, None)

    def _given_up_at(self, job: Job, now_ms: int) -> int:
        """Its wait began when the type was missed, or when the job came to wait for a slot."""
        missed_at = now_ms - self.missing_ms(job.spec.queue, job.spec.type, now_ms)
        came_at = max(job.queued_at, job.due_at or 0, job.dispatched_at or 0)
        return max(missed_at, came_at) + UNKNOWN_TYPE_WAIT_MS

    def _is_over(self, job: Job, now_ms: int) -> bool:
        spec = job.spec
        return (
            job.waits_for == _TYPE_NOT_RUN
            and (job.due_at or 0) <= now_ms
            and self.missing_ms(spec.queue, spec.type, now_ms) >= UNKNOWN_TYPE_WAIT_MS
        )


def _is_told(job: Job, reason: Reason) -> bool:
    """Whether the job's history says already why nobody can run it."""
    return job.waits_for == (NO_WORKER, reason.value)
