"""What a policy is: the questions that it answers, and what it is told.

Owns that interface and the verdicts. Refuses to know any policy
(`tidemill.streams.policies.registry`).

Questions (`admit` and whatever begins with `may_`) change nothing. What a policy remembers changes
in what begins with `on_`, and only in its tables, which undo, write and load themselves. Whatever
is no table is an index: it follows in `place`, and is built from the jobs by `clear` and `place`
after a restore and after an undo. What it means for other jobs is a command (`Turn.command`), so
that each change passes the law.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from mypy_extensions import mypyc_attr

from tidemill.schemas.words import EventKind, Reason
from tidemill.streams.job import Job, JobKey, Spec, WaitKey
from tidemill.streams.store.table import AnyTable

if TYPE_CHECKING:
    from tidemill.streams.job_type import JobType
    from tidemill.streams.turn import Turn

_E: Final = EventKind


class Verdict:
    """The answer to a question about a job. Never changed once made."""

    __slots__ = ("data", "error", "joins", "kind", "reason", "until", "waits_for")

    def __init__(
        self,
        kind: EventKind | None,
        reason: Reason | None = None,
        *,
        error: dict[str, Any] | None = None,
        waits_for: WaitKey | None = None,
        until: int | None = None,
    ) -> None:
        self.kind = kind  # the event that follows: deferred, or an end; None: the job goes on
        self.reason = reason
        self.error = error
        self.waits_for = waits_for
        self.until = until  # epoch ms; None when nobody can say
        self.data: dict[str, Any] | None = None  # of the event, for readers
        #: It waits for another job's end and needs no start: no later policy is asked.
        self.joins: bool = False

    @property
    def is_end(self) -> bool:
        return self.kind is not None and self.kind is not _E.DEFERRED


GO: Final = Verdict(None)
"""Nothing is against it."""


def wait(waits_for: WaitKey, reason: Reason, until: int | None) -> Verdict:
    """The job waits in the list of that key. It is asked about again when it is woken."""
    return Verdict(_E.DEFERRED, reason, waits_for=waits_for, until=until)


def skip(reason: Reason) -> Verdict:
    """The job is not needed."""
    return Verdict(_E.SKIPPED, reason)


def fail(reason: Reason, error: dict[str, Any]) -> Verdict:
    """The job cannot be done; it becomes a dead letter."""
    return Verdict(_E.FAILED, reason, error=error)


def expire(reason: Reason) -> Verdict:
    """Nobody wants the job any more."""
    return Verdict(_E.EXPIRED, reason)


class ComesLater(ValueError):
    """Raised by `on_message`, before it changes anything, for a message of a kind that only a later
    version of the policy takes: the partition stops, and says which version is needed."""


class CannotTake(ValueError):
    """Raised by `on_message`, before it changes anything, for a body that makes no sense to it: the
    record becomes a dead letter, with this text."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Policy:
    """One rule, in one partition. A subclass overrides what it needs.

    `id`: a word (`[a-z][a-z0-9_-]*`, 64 characters) that never changes its meaning: it is the first
    part of the policy's wait keys and the address of its messages. `since`: the first version of
    Tidemill that takes its messages; it travels with each.
    """

    def __init__(self, id: str, since: str = "", *, is_for_requests: bool = False) -> None:
        self.id = id
        self.since = since
        #: A request may ask for it by a field of its own: a unique key, an instant.
        self.is_for_requests = is_for_requests

    def tables(self) -> tuple[AnyTable, ...]:
        """What it remembers."""
        return ()

    def concerns(self, job_type: JobType | None) -> bool:
        """Whether it is asked about all jobs of that type; None: of types that nobody told of.

        What only rare events call is asked of every policy: `may_redrive`, `may_retry`,
        `may_go_on`, `define`, timers and messages.
        """
        return False

    # --- questions ---

    def admit(self, turn: Turn, spec: Spec, job_type: JobType | None) -> Verdict:
        """At the door, and again when a job's type becomes known."""
        return GO

    def may_start(self, turn: Turn, job: Job) -> Verdict:
        """Before each attempt, when a slot is free."""
        return GO

    def may_redrive(self, turn: Turn, job: Job) -> Reason | None:
        """Why a dead letter must not run again."""
        return None

    def may_retry(self, turn: Turn, job: Job, outcome: dict[str, Any]) -> int | None:
        """ms until the next attempt of a job that may have one; None: another one knows."""
        return None

    def may_go_on(self, turn: Turn, job: Job, detail: str | None) -> Verdict:
        """After an attempt was given back or rescued; `detail`: how its worker ended."""
        return GO

    # --- what changes ---

    def on_change(self, turn: Turn, before: Job | None, after: Job) -> None:
        """A decision made `after` of `before`: tables follow."""

    def define(self, turn: Turn, before: JobType | None, after: JobType) -> None:
        """A type's definition is new or another one."""

    def on_timer(self, turn: Turn, name: JobKey | WaitKey) -> None:
        """The timer of a job, or that of a wait list, is due. It may be of an earlier time."""

    def on_message(self, turn: Turn, origin: int, body: dict[str, Any]) -> None:
        """Takes a message that this policy sent in the partition `origin`. State changes only in
        tables and by `turn.command`, so that an aborted group takes all of it back.

        Raises CannotTake for a body that makes no sense to it, and ComesLater for one that will.
        """
        raise ComesLater("it takes no messages")

    # --- indices ---

    def place(self, turn: Turn, before: Job | None, after: Job) -> None:
        """The job is where its new state belongs. Called for each decision, and for each job in
        the order of acceptance, without `before`, after `clear`."""

    def clear(self) -> None:
        """All indices are made anew."""


def ask_door(
    policies: Iterable[Policy], turn: Turn, spec: Spec, job_type: JobType | None,
    said: dict[str, Verdict] | None = None,
) -> Verdict:
    """What all of them say of a request: the first end, else the first wait. A request that shares
    another one's run takes nothing of what the policies behind keep. `said`: see `Turn.submit`."""
    found = GO
    for policy in policies:
        known = None if said is None else said.get(policy.id)
        verdict = policy.admit(turn, spec, job_type) if known is None else known
        if verdict.is_end or verdict.joins:
            return verdict
        if found is GO:
            found = verdict
    return found


def ask_start(policies: Iterable[Policy], turn: Turn, job: Job) -> Verdict:
    """What all of them say of a job that has a slot: the first end, else the first wait."""
    found = GO
    for policy in policies:
        verdict = policy.may_start(turn, job)
        if verdict.is_end:
            return verdict
        if found is GO:
            found = verdict
    return found
