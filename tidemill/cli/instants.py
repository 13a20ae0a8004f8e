"""Instants as people write them on a command line.

Owns the forms. Refuses to know which instants a request may name: `tidemill.schemas.doors` checks
that.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from tidemill.schemas.requests import parse_instant

UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}  # seconds
FORMS: Final = "+5m, +1h30m, +2d, 2026-01-31T18:00:00Z, or seconds or ms since 1970"
EPOCH_MS_DIGITS: Final = 12  # of ms; seconds will have so many in the year 5138

_FROM_NOW: Final = re.compile(r"^\+(?:[0-9]+(?:\.[0-9]+)?[smhd])+$")
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])")
_EPOCH: Final = re.compile(r"^[0-9]{1,18}(?:\.[0-9]{1,9})?$")


def instant_of(text: str, now: datetime) -> datetime:
    """The instant that `text` names. Raises ValueError with the forms that there are."""
    text = text.strip()
    try:
        if _FROM_NOW.match(text):
            seconds = sum(float(number) * UNITS[unit] for number, unit in _PART.findall(text))
            return now + timedelta(seconds=seconds)
        if _EPOCH.match(text):
            whole = text.partition(".")[0]
            is_ms = len(whole) >= EPOCH_MS_DIGITS
            return datetime.fromtimestamp(float(text) / (1_000 if is_ms else 1), tz=UTC)
    except (OverflowError, ValueError, OSError):
        raise ValueError(f"{text!r} is beyond all instants that there are; write {FORMS}") from None
    try:
        found = parse_instant(text)
    except ValueError as error:
        raise ValueError(f"{error}; write {FORMS}") from None
    assert isinstance(found, datetime)
    return found
