"""How jobs of one type are treated, as the engine reads it.

Owns what of a type's definition the engine looks at for each job. Refuses to know where it comes
from and how it is written: `tidemill.schemas.wire.Definition` is the contract. That is a model of
pydantic's, and to read one of its fields costs as much as a dozen of these.
"""

from __future__ import annotations

from tidemill.schemas.wire import BackoffSpec, Definition, LimitSpec


class Limit:
    """At most `limit` first dispatches in any `window_ms`, per user and type."""

    __slots__ = ("delays", "limit", "skips", "window_ms")

    def __init__(self, spec: LimitSpec) -> None:
        self.limit: int = spec.limit
        self.window_ms: int = spec.window_ms
        self.skips: bool = spec.over == "skip"  # what is over it is skipped,
        self.delays: bool = not self.skips  # or waits


class Policy:
    """What a type's definition says to the engine. Never changed once made."""

    __slots__ = (
        "backoff", "has_skip_limit", "is_unique_by_user", "limits", "max_attempts", "queue",
        "timeout_ms", "type",
    )

    def __init__(self, definition: Definition) -> None:
        self.type: str = definition.type
        self.queue: str = definition.queue
        self.max_attempts: int = definition.max_attempts
        self.timeout_ms: int = definition.timeout_ms
        self.backoff: BackoffSpec = definition.backoff
        self.is_unique_by_user: bool = definition.unique_by == "user"
        self.limits: tuple[Limit, ...] = tuple([Limit(spec) for spec in definition.limits])
        self.has_skip_limit: bool = any(limit.skips for limit in self.limits)
