"""The rows of schedules: what each is, and which instant comes next.

Owns the bytes of those rows. A row holds the next instant, so that a restore needs no zone data.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from tidemill.schemas.schedules import ScheduleSpec
from tidemill.streams.schedules.announced import Source
from tidemill.streams.store.table import Table, UnknownRow

KIND: Final = b"s"
VERSION: Final = 1
SINCE: Final = "0.1.0"  # first version of Tidemill that reads these rows
NOBODY: Final = Source((), ())


class Known:
    """A plan that workers announced, and when it was announced first (epoch ms)."""

    __slots__ = ("first_at", "spec")

    def __init__(self, spec: ScheduleSpec, first_at: int) -> None:
        self.spec = spec
        self.first_at = first_at


class ScheduleRow:
    """One schedule. Never changed once it is in the table: `copy` makes the next one."""

    __slots__ = (
        "change", "changed_at", "code", "created_at", "is_orphaned", "last_ms", "name", "next_ms",
        "problem", "revision", "source", "zone_data",
    )

    def __init__(self, name: str, created_at: int) -> None:
        self.name = name
        self.created_at = created_at  # epoch ms; intervals count from here
        self.code: tuple[Known, ...] = ()  # as announced; the last one rules
        self.source: Source = NOBODY
        self.last_ms = created_at - 1  # the last instant that was dealt with
        self.next_ms: int | None = None
        self.is_orphaned = False
        self.problem: str | None = None  # why it has no ticks
        self.revision = 0
        self.changed_at = created_at
        self.change = "created"
        self.zone_data = ""

    def copy(self) -> ScheduleRow:
        """Another object with the same values."""
        made = ScheduleRow(self.name, self.created_at)
        made.code, made.source = self.code, self.source
        made.last_ms, made.next_ms = self.last_ms, self.next_ms
        made.is_orphaned = self.is_orphaned
        made.problem, made.revision, made.changed_at = self.problem, self.revision, self.changed_at
        made.change = self.change
        made.zone_data = self.zone_data
        return made

    @property
    def spec(self) -> ScheduleSpec | None:
        """The plan that rules; None: nobody has told any."""
        return self.code[-1].spec if self.code else None


class ScheduleTable(Table[str, ScheduleRow]):
    """Those of one partition by name. Rows: b"s" + name, and a JSON object."""

    def __init__(self) -> None:
        super().__init__(KIND, SINCE)

    def row_key(self, key: str) -> bytes:
        return KIND + key.encode()

    def row_value(self, key: str, value: ScheduleRow) -> bytes:
        source = value.source
        body: dict[str, Any] = {
            "version": VERSION, "name": value.name, "created_at": value.created_at,
            "code": [[one.first_at, one.spec.model_dump()] for one in value.code],
            "workers": source.workers, "modules": source.modules, "last": value.last_ms,
            "next": value.next_ms, "is_orphaned": value.is_orphaned, "problem": value.problem,
            "revision": value.revision, "changed_at": value.changed_at, "change": value.change,
            "zone_data": value.zone_data,
        }
        return orjson.dumps(body)

    def read(self, key: bytes, value: bytes) -> tuple[str, ScheduleRow]:
        body: dict[str, Any] = orjson.loads(value)
        if body["version"] != VERSION:
            raise UnknownRow(
                f"a schedule's row of version {body['version']}; this ledger reads version "
                f"{VERSION}"
            )
        row = ScheduleRow(body["name"], body["created_at"])
        row.code = tuple(
            [Known(ScheduleSpec.model_validate(spec), at) for at, spec in body["code"]]
        )
        row.source = Source(
            tuple(body["workers"]), tuple([tuple(modules) for modules in body["modules"]])
        )
        row.last_ms, row.next_ms = body["last"], body["next"]
        row.is_orphaned = body["is_orphaned"]
        row.problem, row.revision = body["problem"], body["revision"]
        row.changed_at, row.change = body["changed_at"], body["change"]
        row.zone_data = body["zone_data"]
        return row.name, row
