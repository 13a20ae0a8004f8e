"""Limits of a type, for each user: what is over one is skipped, or waits.

Owns what each user has used of each type's limits, its rows, and who is held back. Refuses to know
the arithmetic: `tidemill.streams.limits`.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

import orjson

from tidemill.schemas.words import Reason
from tidemill.streams import limits
from tidemill.streams.job import RATE_LIMIT, Job, JobKey, Spec, WaitKey
from tidemill.streams.job_type import JobType, Limit
from tidemill.streams.limits import NOTHING_USED, LimitState
from tidemill.streams.policies.base import GO, Policy, Verdict, skip, wait
from tidemill.streams.store.definitions import Definitions
from tidemill.streams.store.table import AnyTable, Table

if TYPE_CHECKING:
    from tidemill.streams.turn import Turn

KIND: Final = b"l"
FORGET_AT_ONCE_MAX: Final = 1_000  # uses looked at in one group, so that no group grows long
LOOK_AGAIN_MS: Final = 1_000  # ms between two looks at a list that is not empty, at most
_SKIP: Final = skip(Reason.RATE_LIMITED)


class LimitUses(Table[tuple[str, str], LimitState]):
    """Uses by (user_id, type). Rows: b"l" + JSON [user_id, type], and JSON [held, started]."""

    def __init__(self, definitions: Definitions) -> None:
        super().__init__(KIND)
        self._definitions = definitions

    def row_key(self, key: tuple[str, str]) -> bytes:
        return limit_key(*key)

    def row_value(self, key: tuple[str, str], value: LimitState) -> bytes:
        return orjson.dumps((value.held, value.started))

    def read(self, key: bytes, value: bytes) -> tuple[tuple[str, str], LimitState]:
        user_id, type_name = orjson.loads(key[1:])
        held, started = orjson.loads(value)
        return (user_id, type_name), LimitState(held, tuple(started))

    def move(
        self, before: Job | None, after: Job, specs: tuple[Limit, ...], now_ms: int
    ) -> None:
        """A decision made `after` of `before`: a start, a hold or a release of one."""
        was_held = before is not None and before.holds_limit
        name = (after.spec.user_id, after.spec.type)
        used = self.values.get(name, NOTHING_USED)
        if after.epoch == 1 and (before is None or before.epoch == 0):
            started_at = after.dispatched_at or now_ms
            changed = limits.start(specs, used, started_at, is_held=was_held)
        elif was_held and not after.holds_limit:
            changed = limits.release(used)
        elif after.holds_limit and not was_held:
            changed = limits.hold(used)
        else:
            return
        self.put(name, changed)

    def forget(self, now_ms: int) -> bool:
        """Drops what no window looks at any more; the rest goes behind the others."""
        dropped = 0
        for name in list(islice(self.values, FORGET_AT_ONCE_MAX)):
            used = self.values.pop(name)
            job_type = self._definitions.job_types.get(name[1])
            specs = () if job_type is None else job_type.limits
            if limits.is_idle(specs, used, now_ms):
                self.before.setdefault(name, used)
                dropped += 1
            else:
                self.values[name] = used
        return 2 * dropped >= FORGET_AT_ONCE_MAX


class RateLimit(Policy):
    """`limits` of types, over the first dispatches of a user."""

    def __init__(self, definitions: Definitions) -> None:
        super().__init__(RATE_LIMIT)
        self.uses = LimitUses(definitions)

    def tables(self) -> tuple[AnyTable, ...]:
        return (self.uses,)

    def concerns(self, job_type: JobType | None) -> bool:
        return job_type is not None and len(job_type.limits) > 0

    def used(self, user_id: str, type: str) -> LimitState:
        """What the user has used of the type's limits."""
        return self.uses.values.get((user_id, type), NOTHING_USED)

    # --- questions ---

    def admit(self, turn: Turn, spec: Spec, job_type: JobType | None) -> Verdict:
        if job_type is None or not job_type.limits:
            return GO
        used = self.used(spec.user_id, spec.type)
        return _SKIP if limits.is_over_skip(job_type.limits, used, turn.now_ms) else GO

    def may_start(self, turn: Turn, job: Job) -> Verdict:
        spec = job.spec
        job_type = turn.job_type(spec.type)
        if job.epoch > 0 or job_type is None or not job_type.limits:
            return GO
        now_ms, used = turn.now_ms, self.used(spec.user_id, spec.type)
        name = (RATE_LIMIT, spec.user_id, spec.type)
        ahead = turn.waiting(name)
        comes_later = ahead > 0 and job.waits_for != name
        if not comes_later and limits.delayed_until(job_type.limits, used, now_ms) <= now_ms:
            return GO
        due_at = limits.estimated_due(job_type.limits, used, now_ms, ahead=ahead)
        return wait(name, Reason.RATE_LIMITED, due_at)

    # --- what changes ---

    def on_change(self, turn: Turn, before: Job | None, after: Job) -> None:
        # A held job is released even when its type has lost its limits since.
        job_type = turn.job_type(after.spec.type)
        if job_type is not None:
            self.uses.move(before, after, job_type.limits, turn.now_ms)

    def define(self, turn: Turn, before: JobType | None, after: JobType) -> None:
        """What the limits are now holds for who waits already."""
        for name in turn.wait_lists(RATE_LIMIT):
            if name[2] == after.type:
                turn.look_at(name, turn.now_ms)

    def on_timer(self, turn: Turn, name: JobKey | WaitKey) -> None:
        """Lets as many jobs go on as there is room for."""
        job_type = turn.job_type(name[2])
        if job_type is None:
            return
        now_ms, used = turn.now_ms, self.used(name[1], name[2])
        free = limits.free_starts(job_type.limits, used, now_ms)
        again_at = limits.delayed_until(job_type.limits, used, now_ms)
        shortest = min((limit.window_ms for limit in job_type.limits), default=0)
        turn.wake(name, free, max(again_at, now_ms + min(shortest, LOOK_AGAIN_MS)))


def limit_key(user_id: str, type: str) -> bytes:
    return KIND + orjson.dumps((user_id, type))
