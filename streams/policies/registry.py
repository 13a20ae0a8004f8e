"""All policies of a partition, in the order in which they are asked.

Owns that order, and which of them are asked about which jobs. A new policy is its module and one
line here.
"""

from __future__ import annotations

from tidemill.streams.job import Job, Spec
from tidemill.streams.job_type import JobType
from tidemill.streams.policies.backoff import Backoff
from tidemill.streams.policies.base import Policy
from tidemill.streams.policies.collapse import Collapse
from tidemill.streams.policies.concurrency import Concurrency
from tidemill.streams.policies.expiry import Expiry
from tidemill.streams.policies.gather import GatherPolicy
from tidemill.streams.policies.rate_limit import RateLimit
from tidemill.streams.policies.rescue import Rescue
from tidemill.streams.policies.schedules import Schedules
from tidemill.streams.policies.suspension import Suspension
from tidemill.streams.policies.uniqueness import Uniqueness
from tidemill.streams.policies.unknown_type import UnknownType
from tidemill.streams.store.definitions import Definitions


class Policies:
    """The policies of one partition."""

    def __init__(self, definitions: Definitions, interruptions_max: int) -> None:
        # Those that the edge tells something, by name.
        self.rescue = Rescue(interruptions_max)
        self.unknown_type = UnknownType()
        self.uniqueness = Uniqueness()
        self.rate_limit = RateLimit(definitions)
        self.schedules = Schedules(definitions)
        self.gather = GatherPolicy()
        self.all: tuple[Policy, ...] = (
            self.schedules,
            self.uniqueness,
            Expiry(),
            Collapse(),
            self.rate_limit,
            Concurrency(),
            self.unknown_type,
            self.rescue,
            Suspension(),
            self.gather,
            Backoff(),
        )
        #: Of types that nobody has told of.
        self.of_unknown: tuple[Policy, ...] = ()
        self._find_unknown()

    def add(self, policy: Policy) -> None:
        """One more, which is asked last. Before any definition is taken."""
        self.all = (*self.all, policy)
        self._find_unknown()

    def _find_unknown(self) -> None:
        self.of_unknown = tuple(
            [one for one in self.all if one.concerns(None) or one.is_for_requests]
        )

    def bind(self, job_type: JobType) -> None:
        """From now on these policies are asked about jobs of that type."""
        job_type.policies = tuple([one for one in self.all if one.concerns(job_type)])
        job_type.policies_of_asked = tuple(
            [one for one in self.all if one.concerns(job_type) or one.is_for_requests]
        )

    def of(self, job: Job, spec: Spec, job_type: JobType | None) -> tuple[Policy, ...]:
        """Those that are told of the job's changes. A job that holds something was let in by a
        policy that may not concern its type any more: all are told of it."""
        if job.holds_limit:
            return self.all
        return self.of_unknown if job_type is None else job_type.policies_for(spec)
