"""What living workers announce of schedules.

Owns the shape, and the questions who has a schedule and who has left it out. Refuses to know how it
is heard.

A worker is known by its id, and by the modules that it loads: the process after a deploy often has
another id and loads the same modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from tidemill.schemas.schedules import ScheduleSpec


class Announcement(NamedTuple):
    """What one living worker says."""

    worker_id: str
    modules: tuple[str, ...]
    specs: Mapping[str, ScheduleSpec]  # by name


Announced = tuple[Announcement, ...]
"""Of all living workers that have been understood, in the order of their ids."""

NOTHING: Final[Announced] = ()


class Source(NamedTuple):
    """Who announced a schedule, as its row remembers it."""

    workers: tuple[str, ...]
    modules: tuple[tuple[str, ...], ...]


WORKERS_MAX: Final = 64  # ids that a row remembers; the modules tell the rest


def source_of(name: str, announced: Announced) -> Source:
    """Who has it now."""
    having = [one for one in announced if name in one.specs]
    workers = tuple([one.worker_id for one in having[:WORKERS_MAX]])
    return Source(workers, tuple(sorted({one.modules for one in having})[:WORKERS_MAX]))


def specs_of(name: str, announced: Announced) -> dict[int, ScheduleSpec]:
    """The plans that living workers have for it, by fingerprint."""
    found: dict[int, ScheduleSpec] = {}
    for one in announced:
        spec = one.specs.get(name)
        if spec is not None:
            found[spec.fingerprint] = spec
    return found


def is_left_out(name: str, source: Source, announced: Announced) -> bool:
    """Whether a worker that had it lives without it, and nobody has it."""
    is_without = False
    for one in announced:
        if name in one.specs:
            return False
        if one.worker_id in source.workers or one.modules in source.modules:
            is_without = True
    return is_without
