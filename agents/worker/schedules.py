"""The schedules of the modules that a worker loads, and their announcement.

Owns the registry by name and the records that announce all of it. Refuses to know when a schedule
is due: the ledger asks for its jobs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from tidemill.agents.worker.errors import JobDefinitionError
from tidemill.schemas import SCHEMA_VERSION
from tidemill.schemas.schedules import SET_BYTES_MAX, SET_PREFIX, ScheduleSet, ScheduleSpec

DIGEST_BYTES: Final = 8  # of a set's id


@dataclass(frozen=True, slots=True)
class Declared:
    """One `@schedule`."""

    name: str
    spec: ScheduleSpec
    #: The function, for people.
    place: str
    #: Module and name of the function: a module that is imported again declares the same.
    identity: tuple[str, str]


class Schedules:
    """Schedules by name."""

    def __init__(self) -> None:
        self._known: dict[str, Declared] = {}

    def add(self, declared: Declared) -> None:
        """Register; a second one of the name is an error that names both."""
        known = self._known.get(declared.name)
        if known is not None and known.identity != declared.identity:
            raise JobDefinitionError(
                f"two schedules of the name {declared.name!r}: {known.place} and "
                f"{declared.place}; give one of them another name"
            )
        self._known[declared.name] = declared

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def specs(self) -> dict[str, ScheduleSpec]:
        """All of them."""
        return {name: self._known[name].spec for name in sorted(self._known)}

    def clear(self) -> None:
        """Forget everything; for tests."""
        self._known.clear()


SCHEDULES: Final = Schedules()
"""Where `tidemill.schedule` registers."""


def announcement(
    specs: Mapping[str, ScheduleSpec], modules: Sequence[str]
) -> tuple[str, dict[str, bytes]]:
    """The set's id, and its records by their keys. A worker without schedules says so too."""
    names = tuple(sorted(modules))
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    digest.update(orjson.dumps((names, {name: specs[name].fingerprint for name in sorted(specs)})))
    set_id = digest.hexdigest()
    parts: list[dict[str, ScheduleSpec]] = [{}]
    size = 0
    for name in sorted(specs):
        length = len(name) + len(specs[name].model_dump_json())
        if size and size + length > SET_BYTES_MAX:
            parts.append({})
            size = 0
        parts[-1][name] = specs[name]
        size += length
    records = {}
    for number, part in enumerate(parts):
        made = ScheduleSet(
            schema_version=SCHEMA_VERSION, id=set_id, part=number, parts=len(parts), modules=names,
            schedules=part,
        )
        records[f"{SET_PREFIX}{set_id}:{number}"] = made.model_dump_json().encode()
    return set_id, records
