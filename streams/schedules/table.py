"""The rows of schedules: what each is, and which instant comes next.

Owns the bytes of those rows. A row holds the next instant, so that a restore needs no zone data.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from tidemill.schemas import SCHEMA_VERSION
from tidemill.schemas.schedules import ScheduleCommand, ScheduleRecord, ScheduleSpec
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
        "actor", "change", "changed_at", "code", "command_id", "created_at", "is_orphaned",
        "is_paused", "last_ms", "live", "name", "next_ms", "problem", "refused", "revision",
        "source", "zone_data",
    )

    def __init__(self, name: str, created_at: int) -> None:
        self.name = name
        self.created_at = created_at  # epoch ms; intervals count from here
        self.code: tuple[Known, ...] = ()  # as announced; the last one rules
        self.live: ScheduleSpec | None = None  # set by command: rules over the code
        self.source: Source = NOBODY
        self.last_ms = created_at - 1  # the last instant that was dealt with
        self.next_ms: int | None = None
        self.is_paused = False
        self.is_orphaned = False
        self.problem: str | None = None  # why it has no ticks
        self.revision = 0
        self.changed_at = created_at
        self.change = "created"
        self.actor: str | None = None  # who asked for the last change
        self.command_id: str | None = None
        self.refused: str | None = None  # why the last command changed nothing
        self.zone_data = ""

    def copy(self) -> ScheduleRow:
        """Another object with the same values."""
        made = ScheduleRow(self.name, self.created_at)
        made.code, made.live, made.source = self.code, self.live, self.source
        made.last_ms, made.next_ms = self.last_ms, self.next_ms
        made.is_paused, made.is_orphaned = self.is_paused, self.is_orphaned
        made.problem, made.revision, made.changed_at = self.problem, self.revision, self.changed_at
        made.change, made.actor = self.change, self.actor
        made.command_id, made.refused = self.command_id, self.refused
        made.zone_data = self.zone_data
        return made

    def note(self, change: str, now_ms: int, command: ScheduleCommand | None) -> None:
        """What has changed, and who asked for it; None: nobody did."""
        self.change, self.changed_at, self.refused = change, now_ms, None
        self.actor = None if command is None else command.actor
        self.command_id = None if command is None else command.command_id
        self.revision += 1

    @property
    def spec(self) -> ScheduleSpec | None:
        """The plan that rules; None: nobody has told any."""
        if self.live is not None:
            return self.live
        return self.code[-1].spec if self.code else None


def told(row: ScheduleRow, spec: ScheduleSpec) -> bytes:
    """The record on jobs.schedules."""
    record = ScheduleRecord(
        schema_version=SCHEMA_VERSION, name=row.name, spec=spec,
        origin="code" if row.live is None else "live", is_paused=row.is_paused,
        is_orphaned=row.is_orphaned, problem=row.problem, created_at=row.created_at,
        next_at=row.next_ms, revision=row.revision, changed_at=row.changed_at, change=row.change,
        actor=row.actor, command_id=row.command_id, refused=row.refused, zone_data=row.zone_data,
    )
    return record.model_dump_json().encode()


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
            "live": None if value.live is None else value.live.model_dump(),
            "is_paused": value.is_paused, "actor": value.actor,
            "command_id": value.command_id, "refused": value.refused,
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
        row.is_orphaned, row.is_paused = body["is_orphaned"], body.get("is_paused", False)
        live = body.get("live")
        row.live = None if live is None else ScheduleSpec.model_validate(live)
        row.actor, row.command_id = body.get("actor"), body.get("command_id")
        row.refused = body.get("refused")
        row.problem, row.revision = body["problem"], body["revision"]
        row.changed_at, row.change = body["changed_at"], body["change"]
        row.zone_data = body["zone_data"]
        return row.name, row
