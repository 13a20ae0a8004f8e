"""The delay before the next attempt: exponential, capped, with jitter that is a hash.

Owns the formula. Refuses to know randomness: the same job and attempt always wait the same, so a
replay decides alike.
"""

from __future__ import annotations

import zlib
from typing import Final

from tidemill.schemas.wire import BackoffSpec

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
