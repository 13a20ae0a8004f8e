"""Cron patterns: which local times match.

Owns the spelling: five fields, six (seconds first), and the words such as `@daily`. Refuses to know
zones: local times are seconds since 1970 on a clock that is never moved. The matching is cronsim's,
which only ever sees local times here: its own rules for moved clocks differ by pattern.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from cronsim import CronSim, CronSimError

WORDS: Final = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0", "@daily": "0 0 * * *", "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
LENGTH_MAX: Final = 200  # characters; the longest useful list of minutes is shorter
# 29 February on a given weekday comes back after 40 years at most. What has no match for longer,
# such as 30 February, is refused at once.
_START: Final = datetime(2000, 1, 1)
_EPOCH: Final = datetime(1970, 1, 1)
_LAST: Final = datetime(9900, 1, 1)  # cronsim looks 50 years ahead, and the calendar ends with 9999
_SECOND: Final = timedelta(seconds=1)


class BadPattern(ValueError):
    """No cron pattern, or one that never matches. The text says what to write."""


class Cron:
    """One pattern. Not for several threads at once: the look for a match is kept in it."""

    __slots__ = ("_next", "pattern")

    def __init__(self, pattern: str) -> None:
        """Raises BadPattern."""
        self.pattern = pattern
        fields = _fields(pattern)
        try:
            self._next = CronSim(fields, _START)
        except (CronSimError, ValueError) as error:
            raise BadPattern(
                f"cron {pattern!r}: {str(error).lower()}; write minute, hour, day of month, month "
                "and day of week, such as '0 9 * * MON-FRI', with seconds before them if you like"
            ) from None
        if self.next_local(_seconds(_START)) is None:
            raise BadPattern(f"cron {pattern!r} never matches: no year has such a day")

    def next_local(self, after: int) -> int | None:
        """The first matching local time later than `after`; None: there is none in 50 years."""
        simulated = self._next
        now = _EPOCH + timedelta(seconds=after)
        if now > _LAST:
            return None
        simulated.dt = now
        found = next(simulated, None)
        return None if found is None else _seconds(found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cron) and other.pattern == self.pattern

    def __hash__(self) -> int:
        return hash(self.pattern)


def _fields(pattern: str) -> str:
    text = pattern.strip()
    if len(text) > LENGTH_MAX:
        raise BadPattern(f"cron: a pattern may have {LENGTH_MAX} characters, this has {len(text)}")
    if text.startswith("@"):
        known = WORDS.get(text.lower())
        if known is None:
            raise BadPattern(f"cron {pattern!r} is not known; known are {', '.join(sorted(WORDS))}")
        return known
    if not text.isascii():
        raise BadPattern(f"cron {pattern!r}: only ASCII letters, digits and * , - / # L W are used")
    if len(text.split()) not in (5, 6):
        raise BadPattern(
            f"cron {pattern!r} has {len(text.split())} fields; write minute, hour, day of month, "
            "month and day of week, with seconds before them if you like"
        )
    return text


def _seconds(local: datetime) -> int:
    return (local - _EPOCH) // _SECOND
