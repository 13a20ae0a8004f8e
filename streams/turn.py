"""What a policy sees and asks for during one group.

Owns that view of a partition. Refuses to decide: what is asked for becomes commands
(`tidemill.streams.processor`), wakes and timers (`tidemill.streams.dispatch.schedule`) and messages
(`tidemill.streams.messages`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from tidemill.schemas.codec import Decoded
from tidemill.streams.commands import Cause, CoreCommand, Redrive
from tidemill.streams.dispatch.schedule import Schedule, is_waiting
from tidemill.streams.job import Job, JobKey, WaitKey
from tidemill.streams.job_type import JobType
from tidemill.streams.policies.base import Verdict
from tidemill.streams.policies.expiry import is_too_late
from tidemill.streams.policies.registry import Policies
from tidemill.streams.store.finished import Ended
from tidemill.streams.store.kept_cancels import KeptCancel
from tidemill.streams.store.state import PartitionState

if TYPE_CHECKING:
    from tidemill.streams.messages import Messages
    from tidemill.streams.processor import Processor

# Until a list where nobody waits is looked at again, whether those that were woken have started.
CLEAR_LIST_MS: Final = 60_000
NO_CAUSE: Final[Cause] = ("", 0, -1)


class NobodyAround(Exception):
    """A bug: a command or a message of a turn that has no partition around it."""


class Turn:
    """One partition as its policies see it. Its instant is that of the group at hand."""

    def __init__(self, state: PartitionState, schedule: Schedule) -> None:
        self.state = state
        self.schedule = schedule
        self.policies: Policies = state.policies
        self.cause: Cause = NO_CAUSE  # of the message at hand
        self.processor: Processor | None = None
        self.messages: Messages | None = None
        #: Of the last event of the decision that policies are told of.
        self.last_data: dict[str, Any] | None = None

    # --- what there is ---

    @property
    def now_ms(self) -> int:
        """The instant of the group, epoch ms."""
        return self.state.clock_ms

    @property
    def accepted(self) -> int:
        """Jobs that the partition has accepted so far."""
        return self.state.accepted

    @property
    def jobs(self) -> Mapping[JobKey, Job]:
        """Living jobs and dead letters."""
        return self.state.jobs

    def job(self, key: JobKey) -> Job | None:
        return self.state.jobs.get(key)

    def job_type(self, name: str) -> JobType | None:
        return self.state.job_type(name)

    def job_type_for_new(self, name: str) -> JobType | None:
        """The same for a request that has just come. It waits behind those that wait for its type
        to be known, as long as there are any."""
        resolving = self.policies.unknown_type.resolving
        return None if resolving and name in resolving else self.state.job_type(name)

    def kept_cancel(self, key: JobKey) -> KeptCancel | None:
        return self.state.cancels.get(key)

    def ended(self, key: JobKey) -> Ended | None:
        """What is remembered of an ended job whose row is packed."""
        return self.state.ended(key)

    # --- what is asked for ---

    def command(self, key: JobKey, command: CoreCommand) -> None:
        """A command for a job of this partition, decided in this group, behind what goes on."""
        self._around().follow(key, command)

    def decide(self, key: JobKey, job: Job, command: CoreCommand) -> None:
        """The same at once. Only where no other decision goes on: by a timer, or by time."""
        self._around().decide(key, job, command)

    def submit(
        self, decoded: Decoded, job_id: str, cause: Cause | None = None,
        said: dict[str, Verdict] | None = None,
    ) -> None:
        """A request that time or a message brings, decided at once. Only where no other decision
        goes on. `said`: by id, what policies answer that are not asked then."""
        self._around().submit(decoded, job_id, cause, said)

    def redrive(self, key: JobKey, job: Job, command: Redrive) -> bool:
        """The same of a dead letter that is to run again. False: it must not."""
        around = self._around()
        is_accepted = around.decide(key, job, command)
        if is_accepted:
            around.resolve_known(key)
        return is_accepted

    def spend(self, decisions: int) -> None:
        """Something else than a decision about a job takes time of the group."""
        self._around().spend(decisions)

    def note_late(self, key: JobKey) -> None:
        """The message at hand is for a job that waits for it no more."""
        self._around().note_late(key, self.cause)

    def tell_schedule(self, name: str, value: bytes | None) -> None:
        """What a schedule is now; None: it is gone."""
        self._around().output.schedule(name, value)

    def resolve(self, key: JobKey, job: Job, job_type: JobType | None) -> None:
        """The job's wait for its type is over, at once; without a type it has waited in vain."""
        self._around().resolve(key, job, job_type)

    def send(self, home_key: str, policy: str, body: dict[str, Any]) -> None:
        """A message to that policy in the partition of `home_key`: a user or any other key.

        Raises UnsendableMessage and MessagesWithoutEnd: bugs of the policy.
        """
        self._post().send(home_key, policy, body)

    def partition_of(self, home_key: str) -> int:
        """The partition that `send` would send to."""
        return self._post().partition_of(home_key)

    def send_to(self, partition: int, policy: str, body: dict[str, Any]) -> None:
        """The same as `send`, for many keys that are at home in one partition."""
        self._post().send_to(partition, policy, body)

    def send_to_all(self, policy: str, body: dict[str, Any]) -> None:
        """The same to every partition, this one too."""
        self._post().send_to_all(policy, body)

    def set_timer(self, policy: str, at_ms: int, key: JobKey) -> None:
        """`on_timer` of that policy, for a job. The timers of lists are set by `look_at`."""
        self.schedule.set_timer(at_ms, policy, key)

    def _around(self) -> Processor:
        if self.processor is None:
            raise NobodyAround("no partition decides here")
        return self.processor

    def _post(self) -> Messages:
        if self.messages is None:
            raise NobodyAround("no partition sends messages here")
        return self.messages

    # --- wait lists ---

    def waiting(self, name: WaitKey) -> int:
        """How many wait for it, and were not woken."""
        found = self.schedule.wait_lists.get(name)
        return 0 if found is None else len(found)

    def wait_lists(self, policy: str) -> list[WaitKey]:
        """The names of that policy's lists."""
        return [name for name in self.schedule.wait_lists if name[0] == policy]

    def look_at(self, name: WaitKey, at_ms: int) -> None:
        """`on_timer` for a list, then and not when it was to be looked at before."""
        self.schedule.set_wake(name, at_ms)

    def first_of(self, name: WaitKey) -> JobKey | None:
        """Takes the first one out of a list."""
        found = self.schedule.wait_lists.get(name)
        return found.pop() if found is not None and len(found) else None

    def drop_list(self, name: WaitKey) -> None:
        self.schedule.wait_lists.pop(name, None)

    def wake(self, name: WaitKey, at_most: int, again_at_ms: int) -> None:
        """So many of a list may go on: they take their places in line, and are asked about again.
        Who was woken before and has found no slot yet has the first right. The list is looked at
        again at `again_at_ms` if anybody is left."""
        waiting = self.schedule.wait_lists.get(name)
        if waiting is None:
            return
        jobs, now_ms = self.state.jobs, self.state.clock_ms
        for key in list(waiting.through):
            if not is_waiting(jobs.get(key), name):
                del waiting.through[key]
        left = at_most - len(waiting.through)
        while len(waiting) and left > 0:
            key = waiting.pop()
            job = jobs.get(key)
            # One that has expired takes nothing away: its own timer ends it.
            if job is not None and is_waiting(job, name) and not is_too_late(job, now_ms):
                self.schedule.make_ready(job, is_first=True)
                waiting.through[key] = None
                left -= 1
        if len(waiting):
            self.schedule.set_wake(name, again_at_ms)
        elif not waiting.through:
            self.schedule.wait_lists.pop(name, None)
        else:
            self.schedule.set_wake(name, now_ms + CLEAR_LIST_MS)
