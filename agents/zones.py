"""Time zones from the installed `tzdata` package, as the tables that the core reckons with.

Owns the reading and the names. Refuses to know schedules.

Python's `ZoneInfo(name)` prefers the system's files: two ledgers would disagree when their images
do. Here only the package counts, whose version the installation pins.
"""

from __future__ import annotations

import importlib
import importlib.resources
import struct
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from tidemill.streams.occurrences.zone import Zone

FIRST_YEAR: Final = 1970
END_YEAR: Final = 2100  # beyond, no rule of today will hold; a table has two rows a year at most
ZONES_MAX: Final = 700  # tables that are kept: there are about 600 names
_DAY: Final = 86_400
_HEADER: Final = struct.Struct(">4sc15x6L")
_MAGIC: Final = b"TZif"
_TIMES: Final = 3  # which of the header's six counts is that of the changes


class UnknownZone(ValueError):
    """No zone of this name. The text names the way out."""


def version() -> str:
    """Of the zone data, such as 2026f."""
    return str(importlib.import_module("tzdata").IANA_VERSION)


@lru_cache(maxsize=1)
def names() -> frozenset[str]:
    """All names that the package has, older ones included."""
    text = importlib.resources.files("tzdata").joinpath("zones").read_text("utf-8")
    return frozenset(text.split())


@lru_cache(maxsize=ZONES_MAX)
def zone(name: str) -> Zone:
    """The table of a zone. Raises UnknownZone."""
    if name not in names():
        alike = sorted(known for known in names() if known.lower() == name.lower())
        hint = repr(alike[0]) if alike else "a name such as 'Europe/Berlin' or 'UTC'"
        raise UnknownZone(f"zone={name!r} is no time zone of the IANA database; write {hint}")
    return _table(name, info(name), _data(name))


def info(name: str) -> ZoneInfo:
    """Python's own view of the same data."""
    with importlib.resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as f:
        return ZoneInfo.from_file(f, key=name)


def _data(name: str) -> bytes:
    return importlib.resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).read_bytes()


def _table(name: str, known: ZoneInfo, data: bytes) -> Zone:
    """Changes that the file lists are taken from it; later ones follow its rule, day by day."""
    begin, end = _instant(FIRST_YEAR), _instant(END_YEAR)
    listed, has_rule = _listed(data)
    changes: list[int] = []
    offsets = [_offset(known, begin)]
    for instant in listed:
        if begin < instant < end and _offset(known, instant) != offsets[-1]:
            changes.append(instant)
            offsets.append(_offset(known, instant))
    if has_rule:
        day = max([begin, *listed[-1:]])
        while day < end:
            if _offset(known, min(day + _DAY, end - 1)) != offsets[-1]:
                changes.append(_change(known, day, min(day + _DAY, end - 1)))
                offsets.append(_offset(known, changes[-1]))
            day += _DAY
    return Zone(name, tuple(changes), tuple(offsets), end)


def _instant(year: int) -> int:
    return int(datetime(year, 1, 1, tzinfo=UTC).timestamp())


def _offset(known: ZoneInfo, instant: int) -> int:
    offset = datetime.fromtimestamp(instant, known).utcoffset()
    assert offset is not None
    return int(offset.total_seconds())


def _change(known: ZoneInfo, low: int, high: int) -> int:
    """The instant in (low, high] from which the offset of `high` holds."""
    wanted = _offset(known, high)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(known, middle) == wanted:
            high = middle
        else:
            low = middle
    return high


def _listed(data: bytes) -> tuple[list[int], bool]:
    """The instants of a TZif file (RFC 8536), second block, and whether a rule follows them."""
    magic, _, *counts = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise ValueError("no TZif data")
    at = _HEADER.size + _length(counts, 4)
    magic, _, *counts = _HEADER.unpack_from(data, at)
    at += _HEADER.size
    instants = list(struct.unpack_from(f">{counts[_TIMES]}q", data, at))
    footer = data[at + _length(counts, 8):].decode("ascii").strip()
    return instants, "," in footer


def _length(counts: list[int], width: int) -> int:
    isutc, isstd, leap, times, types, characters = counts
    return times * (width + 1) + types * 6 + characters + leap * (width + 4) + isstd + isutc
