"""Schedules as they travel: what workers announce, what people ask, what the ledger tells.

Owns those shapes and their bounds. Refuses to know when a schedule is due
(`tidemill.streams.occurrences`) and where zone data is read.
"""

from __future__ import annotations

import zlib
from typing import Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from tidemill.schemas.requests import Instant, Tag, TypeName

PERIOD_MS_MIN: Final = 1_000  # ms between two ticks; a job that asks for itself is quicker
PERIOD_MS_MAX: Final = 366 * 86_400_000  # ms, a year; more is a slip of the pen
JITTER_MS_MAX: Final = 86_400_000  # ms, a day
CRON_LENGTH_MAX: Final = 200  # characters
ZONE_LENGTH_MAX: Final = 64  # characters; the longest name of the database has 32
BACKFILL_MAX: Final = 1_000  # ticks of one backfill; a longer range goes in several
PAYLOAD_BYTES_MAX: Final = 65_536  # bytes of a schedule's own payload: each tick carries it
SET_BYTES_MAX: Final = 524_288  # bytes of schedules in one record; a longer list goes in parts
USER_PREFIX: Final = "schedule:"
"""Before a schedule's name: the user of its jobs, and the key of its home."""
SET_PREFIX: Final = "schedules:"
"""Before the id of a set: the keys of its records on jobs.definitions."""
SOURCE: Final = "schedule"
"""The `source` of a schedule's jobs."""

Overlap = Literal["skip", "queue_one", "queue_all", "cancel_old", "allow"]
CatchUp = Literal["none", "last", "all"]
Gap = Literal["next", "skip"]
Fold = Literal["first", "second", "both"]


class ScheduleSpec(BaseModel):
    """When a schedule is due and what it asks for. Exactly one of `every_ms` and `cron`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: TypeName = Field(description="The job type that each tick asks for.")
    every_ms: int | None = Field(default=None, ge=PERIOD_MS_MIN, le=PERIOD_MS_MAX)
    cron: str | None = Field(default=None, max_length=CRON_LENGTH_MAX)
    zone: str = Field(default="UTC", max_length=ZONE_LENGTH_MAX)
    gap: Gap = "next"
    fold: Fold = "first"
    is_first_now: bool = False
    overlap: Overlap = "skip"
    catch_up: CatchUp = "last"
    jitter_ms: int = Field(default=0, ge=0, le=JITTER_MS_MAX)
    payload: dict[str, Any] = Field(default_factory=dict)

    @property
    def fingerprint(self) -> int:
        """Tells one plan from another."""
        return zlib.crc32(orjson.dumps(self.model_dump(), option=orjson.OPT_SORT_KEYS))


class ScheduleSet(BaseModel):
    """A part of what one worker announces: a record on `jobs.definitions`, key =
    `schedules:<id>:<part>`. Its heartbeats name the id."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int
    id: str = Field(description="The same for the same schedules of the same modules.")
    part: int = Field(ge=0)
    parts: int = Field(ge=1)
    modules: tuple[str, ...] = Field(
        description="What the worker was told to load: another process that loads the same is its "
        "next one."
    )
    schedules: dict[TypeName, ScheduleSpec]


ScheduleWord = Literal["set", "remove", "pause", "resume", "run", "backfill"]


class ScheduleCommand(BaseModel):
    """A record on `jobs.commands` about a schedule, key = `schedule:<name>`. The answer is the
    record on `jobs.schedules` that has its `command_id`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: Literal["schedule"]
    word: ScheduleWord = Field(
        description="set: make one, or change one. remove: forget what was set; one that no code "
        "has is gone. pause, resume: no ticks, ticks again. run: a tick now. backfill: the ticks "
        "of a past range."
    )
    name: TypeName = Field(description="Which schedule.")
    command_id: str = Field(
        min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$",
        description="Told in the answer, and part of job ids.",
    )
    spec: ScheduleSpec | None = Field(default=None, description="set: all that it is from now on.")
    at: Instant | None = Field(default=None, description="run: the instant in the job's id.")
    since: Instant | None = Field(default=None, description="backfill: ticks later than this,")
    until: Instant | None = Field(default=None, description="backfill: up to and with this.")
    actor: Tag | None = Field(default=None, description="Who asks.")


class ScheduleRecord(BaseModel):
    """What a schedule is now: a record on `jobs.schedules`, key = name. Written when it changes,
    not with each tick; without a value when it is gone."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int
    name: str
    spec: ScheduleSpec
    origin: Literal["code", "live"] = Field(description="live: settings by command rule.")
    is_paused: bool = False
    is_orphaned: bool = Field(
        default=False, description="It left the code: no ticks, and it may be removed."
    )
    problem: str | None = Field(default=None, description="Why it has no ticks.")
    created_at: int = Field(description="Epoch ms; intervals count from here.")
    next_at: int | None = Field(description="Epoch ms, as of the change; None: no ticks.")
    revision: int = Field(description="Grows with each change.")
    changed_at: int = Field(description="Epoch ms.")
    change: str = Field(description="created, announced, orphaned, set, paused, zone data …")
    actor: str | None = Field(default=None, description="Who asked for the last change.")
    command_id: str | None = Field(default=None, description="Of the last command.")
    refused: str | None = Field(
        default=None, description="Why the last command changed nothing; None: it did."
    )
    zone_data: str = Field(default="", description="The version of the zone data in use.")
