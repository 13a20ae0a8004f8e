"""What each user has used of each type's limits.

Owns the rows and when a use is forgotten. Refuses to know the arithmetic:
`tidemill.streams.limits`.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

import orjson

from tidemill.streams import limits
from tidemill.streams.job import Job
from tidemill.streams.limits import NOTHING_USED, LimitState
from tidemill.streams.policy import Limit
from tidemill.streams.store.definitions import Definitions
from tidemill.streams.store.table import Table

KIND: Final = b"l"
FORGET_AT_ONCE_MAX: Final = 1_000  # uses looked at in one group, so that no group grows long


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
            policy = self._definitions.policies.get(name[1])
            specs = () if policy is None else policy.limits
            if limits.is_idle(specs, used, now_ms):
                self.before.setdefault(name, used)
                dropped += 1
            else:
                self.values[name] = used
        return 2 * dropped >= FORGET_AT_ONCE_MAX


def limit_key(user_id: str, type: str) -> bytes:
    return KIND + orjson.dumps((user_id, type))
