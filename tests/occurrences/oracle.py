"""When a cron pattern is due in a zone, by looking at every single minute.

Owns a second reading of patterns and of the rules for moved clocks, written apart: it imports
nothing of the engine and nothing of cronsim, and asks Python's `ZoneInfo` for every minute. Slow.
"""

from __future__ import annotations

import calendar
import importlib.resources
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

MINUTE = 60
HOUR = 3_600
DAY = 86_400
NAMES = {
    name: number
    for names, first in (("SUN MON TUE WED THU FRI SAT", 0),
                         ("JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC", 1))
    for number, name in enumerate(names.split(), first)
}
WORDS = {"@daily": "0 0 * * *", "@hourly": "0 * * * *", "@weekly": "0 0 * * 0",
         "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *"}


def zone_files() -> list[str]:
    """The canonical names: those that the database has lines of their own for."""
    text = importlib.resources.files("tzdata").joinpath("zoneinfo", "tzdata.zi").read_text()
    return sorted(line.split()[1] for line in text.splitlines() if line.startswith("Z "))


@cache
def info(name: str) -> ZoneInfo:
    place = importlib.resources.files("tzdata").joinpath("zoneinfo", *name.split("/"))
    with place.open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


class Pattern:
    """One pattern, as sets of numbers."""

    def __init__(self, text: str) -> None:
        fields = WORDS.get(text, text).upper().split()
        if len(fields) == 5:
            fields = ["0", *fields]
        self.second = numbers(fields[0], 0, 59)
        self.minute = numbers(fields[1], 0, 59)
        self.hour = numbers(fields[2], 0, 23)
        self.day = numbers(fields[3], 1, 31) if fields[3] != "L" else frozenset()
        self.is_last_day = fields[3] == "L"
        self.month = numbers(fields[4], 1, 12)
        self.weekday = frozenset(day % 7 for day in numbers(fields[5], 0, 7))
        # Debian's cron: both must match when one begins with a star, else one of them is enough.
        self.needs_both = fields[3][0] == "*" or fields[5][0] == "*"

    def matches(self, local: datetime) -> bool:
        return (
            local.minute in self.minute and local.hour in self.hour
            and local.second in self.second and local.month in self.month
            and self._is_day(local)
        )

    def _is_day(self, local: datetime) -> bool:
        is_day = local.day in self.day or (
            self.is_last_day and local.day == calendar.monthrange(local.year, local.month)[1]
        )
        is_weekday = (local.weekday() + 1) % 7 in self.weekday
        return (is_day and is_weekday) if self.needs_both else (is_day or is_weekday)


def numbers(field: str, low: int, high: int) -> frozenset[int]:
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        begin, _, end = span.partition("-")
        if span == "*":
            first, last = low, high
        else:
            first = NAMES[begin] if begin in NAMES else int(begin)
            last = (NAMES[end] if end in NAMES else int(end)) if end else (high if step else first)
        found.update(range(first, last + 1, int(step or 1)))
    return frozenset(found)


@dataclass
class Window:
    """Every step from `begin` to before `end`, as a zone's clocks show it."""

    begin: int
    end: int
    step: int
    #: Instant and what the clocks show then.
    shown: list[tuple[int, datetime]]
    #: Local time -> all its instants, in order; only those that have several.
    repeated: dict[datetime, list[int]]
    #: First instant after a gap, and the local times that are left out before it.
    gaps: list[tuple[int, list[datetime]]]


def window(name: str, begin: int, end: int, step: int = MINUTE) -> Window:
    known = info(name)
    pace = timedelta(seconds=step)
    shown: list[tuple[int, datetime]] = []
    of: defaultdict[datetime, list[int]] = defaultdict(list)
    gaps: list[tuple[int, list[datetime]]] = []
    before: datetime | None = None
    for instant in range(begin, end, step):
        local = datetime.fromtimestamp(instant, known).replace(tzinfo=None, fold=0)
        shown.append((instant, local))
        of[local].append(instant)
        if before is not None and local - before > pace:
            left_out = []
            while (before := before + pace) < local:
                left_out.append(before)
            gaps.append((instant, left_out))
        before = local
    repeated = {local: instants for local, instants in of.items() if len(instants) > 1}
    return Window(begin, end, step, shown, repeated, gaps)


def due(pattern: Pattern, seen: Window, gap: str, fold: str) -> list[int]:
    """Every instant of the window at which the pattern is due, in order."""
    found: set[int] = set()
    for instant, local in seen.shown:
        if pattern.matches(local):
            instants = seen.repeated.get(local)
            if (
                instants is None or fold == "both"
                or instant == (instants[0] if fold == "first" else instants[-1])
            ):
                found.add(instant)
    if gap == "next":
        found.update(
            instant for instant, left_out in seen.gaps if any(map(pattern.matches, left_out))
        )
    return sorted(found)


def changes(name: str, begin: int, end: int) -> Iterator[int]:
    """Hours in which the offset changes: their last instants."""
    known = info(name)
    before = datetime.fromtimestamp(begin, known).utcoffset()
    for instant in range(begin + HOUR, end, HOUR):
        offset = datetime.fromtimestamp(instant, known).utcoffset()
        if offset != before:
            yield instant
            before = offset


def windows(
    name: str, begin: int, end: int, margin: int, week: int | None = None
) -> list[tuple[int, int]]:
    """Where to look: `margin` around each change, and the week that begins at `week`."""
    spans = [(each - HOUR - margin, each + margin) for each in changes(name, begin, end)]
    if week is not None:
        spans.append((week, week + 7 * DAY))
    merged: list[tuple[int, int]] = []
    for low, high in sorted(spans):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged
