"""Durations as users write them: "10min", 90, a timedelta.

Owns the spelling and its check. Refuses to know what lasts so long.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Final

from tidemill.agents.worker.errors import JobDefinitionError

UNITS_SECONDS: Final = {
    "ms": 0.001, "s": 1.0, "sec": 1.0, "second": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0,
    "h": 3_600.0, "hour": 3_600.0, "d": 86_400.0, "day": 86_400.0, "w": 604_800.0,
    "week": 604_800.0,
}
DURATION_SECONDS_MAX: Final = 366 * 86_400.0  # seconds; more is a slip of the pen
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)?\s*([a-z]+)", re.ASCII)
_WAYS: Final = 'write a number of seconds or a text such as "2s", "5min", "1h" or "1h30min"'

Duration = float | int | str | timedelta
"""Seconds, a text with units, or a timedelta."""


def seconds_of(value: object, name: str = "duration") -> float:
    """A duration in seconds. JobDefinitionError names `name` and the ways to write one."""
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, str):
        seconds = parse(value, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise JobDefinitionError(f"{name}={value!r} is no duration; {_WAYS}")
    if not math.isfinite(seconds) or not 0 <= seconds <= DURATION_SECONDS_MAX:
        raise JobDefinitionError(
            f"{name}={value!r} must be from 0 to {DURATION_SECONDS_MAX / 86_400:.0f} days; {_WAYS}"
        )
    return seconds


def parse(text: str, name: str, *, is_unit_enough: bool = False) -> float:
    rest = text.strip().lower()
    total = 0.0
    if not rest:
        raise JobDefinitionError(f"{name}={text!r} is empty; {_WAYS}")
    while rest:
        match = _PART.match(rest)
        if match is None or (match[1] is None and not is_unit_enough):
            raise JobDefinitionError(f"{name}={text!r} is no duration; {_WAYS}")
        unit = match[2] if match[2] in UNITS_SECONDS else match[2].removesuffix("s")
        if unit not in UNITS_SECONDS:
            raise JobDefinitionError(
                f"{name}={text!r}: the unit {match[2]!r} is not known; use ms, s, min, h, d or w"
            )
        total += float(match[1] or 1) * UNITS_SECONDS[unit]
        rest = rest[match.end() :].strip()
    return total
