"""How jobs of one type are treated, as the engine reads it.

Owns what of a type's definition the engine looks at for each job. Refuses to know where it comes
from and how it is written: `tidemill.schemas.wire.Definition` is the contract. That is a model of
pydantic's, and to read one of its fields costs as much as a dozen of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidemill.schemas.wire import BackoffSpec, Definition, LimitSpec
from tidemill.streams.job import Spec

if TYPE_CHECKING:
    from tidemill.streams.policies.base import Policy


class Limit:
    """At most `limit` first dispatches in any `window_ms`, per user and type."""

    __slots__ = ("delays", "limit", "skips", "window_ms")

    def __init__(self, spec: LimitSpec) -> None:
        self.limit: int = spec.limit
        self.window_ms: int = spec.window_ms
        self.skips: bool = spec.over == "skip"  # what is over it is skipped,
        self.delays: bool = not self.skips  # or waits


class JobType:
    """What a type's definition says to the engine. Never changed once its policies are bound."""

    __slots__ = (
        "backoff", "collapse_by", "concurrency", "has_skip_limit", "is_unique_by_user", "limits",
        "max_attempts", "policies", "policies_of_asked", "queue", "timeout_ms", "type",
    )

    def __init__(self, definition: Definition) -> None:
        self.type: str = definition.type
        self.queue: str = definition.queue
        self.max_attempts: int = definition.max_attempts
        self.timeout_ms: int = definition.timeout_ms
        self.backoff: BackoffSpec = definition.backoff
        #: Attempts of a user at once; 0: as many as there are slots.
        at_once = definition.concurrency
        self.concurrency: int = 0 if at_once is None else at_once.limit
        #: The path to the value in the payload by which requests are the same; empty: none are.
        path = definition.collapse_by
        self.collapse_by: tuple[str, ...] = () if path is None else tuple(path.split(".")[1:])
        self.is_unique_by_user: bool = definition.unique_by == "user"
        self.limits: tuple[Limit, ...] = tuple([Limit(spec) for spec in definition.limits])
        self.has_skip_limit: bool = any(limit.skips for limit in self.limits)
        #: The policies that are asked about each of its jobs (`Policies.bind`),
        self.policies: tuple[Policy, ...] = ()
        #: and those about jobs whose request asks for more. Both in the registry's order.
        self.policies_of_asked: tuple[Policy, ...] = ()

    def policies_for(self, spec: Spec) -> tuple[Policy, ...]:
        """Those that concern the job. A plain job of a plain type has none."""
        if spec.unique_key is None and spec.expires_at is None and spec.source is None:
            return self.policies
        return self.policies_of_asked
