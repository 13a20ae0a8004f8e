"""The delay before the next attempt: exponential, capped, with jitter that is a hash.

Owns the formula and who may ask for another delay. Refuses to know randomness: the same job and
attempt always wait the same, so a replay decides alike.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

from tidemill.schemas.wire import DELAY_MS_MAX, BackoffSpec
from tidemill.streams.job import Job
from tidemill.streams.policies.base import Policy

if TYPE_CHECKING:
    from tidemill.streams.turn import Turn

NO_BACKOFF_KNOWN: Final = BackoffSpec()  # when a type's definition is gone

_HASH_SPACE: Final = 2**32
_EXPONENT_MAX: Final = 64  # beyond, every cap is reached; keeps the power finite


def backoff_ms(policy: BackoffSpec, *, attempt: int, seed: str) -> int:
    """Milliseconds to wait after the failed `attempt` (1 for the first).

    min(cap, base * factor**(attempt - 1)), moved by up to +/- jitter, never above the cap.
    """
    exponent = min(attempt - 1, _EXPONENT_MAX)
    try:
        plain = min(float(policy.cap_ms), policy.base_ms * policy.factor**exponent)
    except OverflowError:  # beyond what a float holds, and so beyond every cap
        plain = float(policy.cap_ms)
    fraction = zlib.crc32(f"{seed}:{attempt}".encode()) / _HASH_SPACE  # 0 <= fraction < 1
    moved = plain * (1 + policy.jitter * (2 * fraction - 1))
    return int(min(float(policy.cap_ms), moved))


class Backoff(Policy):
    """`backoff` of types, and `Retry(after_seconds=)` of handlers."""

    def __init__(self) -> None:
        super().__init__("backoff")

    def may_retry(self, turn: Turn, job: Job, outcome: dict[str, Any]) -> int | None:
        """What the handler asked for, else the type's backoff."""
        asked = outcome.get("retry_after_ms")
        if asked is None:
            job_type = turn.job_type(job.spec.type)
            spec = NO_BACKOFF_KNOWN if job_type is None else job_type.backoff
            seed = f"{job.spec.user_id}/{job.spec.job_id}/{job.run}"
            asked = backoff_ms(spec, attempt=job.attempt, seed=seed)
        return max(0, min(int(asked), DELAY_MS_MAX))
