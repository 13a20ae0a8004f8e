"""The schedules that living workers announce, put together from sets and heartbeats.

Owns the sets by their ids. Refuses to know what an announcement leads to
(`tidemill.streams.schedules`). A worker whose set has not been read yet announces nothing so far.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from tidemill.schemas.schedules import SET_PREFIX, ScheduleSet, ScheduleSpec
from tidemill.schemas.wire import Heartbeat
from tidemill.streams.schedules.announced import NOTHING, Announced, Announcement

SETS_MAX: Final = 1_000  # that are kept: each deployment has one; the oldest unused go first


class _Known(NamedTuple):
    modules: tuple[str, ...]
    specs: Mapping[str, ScheduleSpec]


class ScheduleSets:
    """All sets that were read. Not thread-safe: its owner has a lock."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[int, ScheduleSet]] = {}
        self._whole: dict[str, _Known] = {}
        self._fleet: tuple[tuple[str, str], ...] = ()
        self._announced: Announced = NOTHING

    @staticmethod
    def is_key(key: bytes | None) -> bool:
        """Whether a record of that key on jobs.definitions is a set's."""
        return key is not None and key.startswith(SET_PREFIX.encode())

    def note(self, part: ScheduleSet) -> None:
        """One record; the set counts when all of its parts are there."""
        parts = self._parts.setdefault(part.id, {})
        parts[part.part] = part
        if len(parts) >= part.parts:
            specs = {
                name: spec for one in parts.values() for name, spec in one.schedules.items()
            }
            self._whole[part.id] = _Known(part.modules, specs)
            del self._parts[part.id]
            self._forget_unused()
            self._fleet = ()  # whoever announces it is understood from now on

    def _forget_unused(self) -> None:
        used = {one for _, one in self._fleet}
        for known in list(self._whole)[:-1]:
            if len(self._whole) <= SETS_MAX:
                return
            if known not in used:
                del self._whole[known]

    def of(self, living: Iterable[Heartbeat]) -> Announced:
        """What those workers announce. The same object as before while nothing has changed."""
        fleet = tuple(sorted([
            (beat.worker_id, beat.schedules) for beat in living
            if beat.schedules is not None and beat.schedules in self._whole
            and not beat.is_stopping
        ]))
        if fleet != self._fleet:
            self._fleet = fleet
            self._announced = tuple(
                [Announcement(worker_id, *self._whole[one]) for worker_id, one in fleet]
            )
        return self._announced
