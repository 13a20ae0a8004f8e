"""Schedules over HTTP: what each is, and commands with the ledger's answer.

Owns the paths under `/api/schedules`. Needs no ClickHouse. Refuses to know what a command does.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeVar

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tidemill.agents.api.problems import Problem, answer_problems, invalid_parameter
from tidemill.agents.schedule_log import ScheduleLog, next_of, problem_of
from tidemill.schemas.requests import TYPE_LENGTH_MAX, Instant
from tidemill.schemas.schedules import ScheduleCommand, ScheduleRecord, ScheduleSpec, ScheduleWord
from tidemill.schemas.topics import Topics

AT_ONCE: Final = 8  # readers at once; each has a consumer of its own
R = TypeVar("R")
Name = Annotated[str, Path(max_length=TYPE_LENGTH_MAX)]


class Settings(ScheduleSpec):
    """All that a schedule is from now on."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(BaseModel):
    """Ticks later than `since`, up to and with `until`."""

    model_config = ConfigDict(extra="forbid")

    since: Instant
    until: Instant


class Schedules(BaseModel):
    """All schedules, by name."""

    schedules: list[dict[str, Any]] = Field(description="Each as `GET /api/schedules/{name}`.")


def shown(record: ScheduleRecord) -> dict[str, Any]:
    """The record, with the next instant as of now."""
    return record.model_dump(mode="json") | {"next_at": next_of(record, int(time.time() * 1000))}


class _Asking:
    """Reads and asks aside the loop."""

    def __init__(self, kafka: str, topics: Topics) -> None:
        self._kafka = kafka
        self._topics = topics
        self._room = asyncio.Semaphore(AT_ONCE)

    async def run(self, work: Callable[[ScheduleLog], R]) -> R:
        """What `work` says of the log as it is now."""

        def aside() -> R:
            with ScheduleLog(self._kafka, self._topics) as log:
                return work(log)

        async with self._room:
            with answer_problems():
                return await asyncio.to_thread(aside)

    async def ask(self, word: ScheduleWord, name: str, **fields: Any) -> dict[str, Any] | None:
        """The schedule after a command; None: it is gone."""
        try:
            command = ScheduleCommand(
                command="schedule", word=word, name=name, command_id=uuid.uuid4().hex,
                actor="api", **fields,
            )
        except ValidationError as error:
            raise invalid_parameter(error) from None

        def work(log: ScheduleLog) -> ScheduleRecord | None:
            if word != "set" and name not in log.records:
                raise _unknown(name)
            return log.ask(command)

        record = await self.run(work)
        if record is not None and record.refused is not None:
            raise Problem(
                409, "command-refused", f"the {word} of {name!r} was refused: {record.refused}",
                field="name",
            )
        return None if record is None else shown(record)


def _unknown(name: str) -> Problem:
    return Problem(
        404, "unknown-schedule", f"there is no schedule {name!r}; GET /api/schedules names them",
        field="name",
    )


def add_schedules(router: APIRouter, kafka: str, topic_prefix: str) -> None:
    """The routes under /api."""
    asking = _Asking(kafka, Topics(topic_prefix))

    @router.get("/schedules", summary="All schedules")
    async def list_schedules() -> Schedules:
        records = await asking.run(lambda log: log.records)
        return Schedules(schedules=[shown(records[name]) for name in sorted(records)])

    @router.get("/schedules/{name}", summary="One schedule")
    async def show_schedule(name: Name) -> dict[str, Any]:
        record = await asking.run(lambda log: log.records.get(name))
        if record is None:
            raise _unknown(name)
        return shown(record)

    @router.put("/schedules/{name}", summary="Make a schedule, or set what it is from now on")
    async def set_schedule(name: Name, settings: Settings) -> dict[str, Any] | None:
        wrong = problem_of(settings)
        if wrong is not None:
            raise Problem(422, "invalid-field", wrong[1], field=wrong[0])
        spec = ScheduleSpec(**settings.model_dump())
        return await asking.ask("set", name, spec=spec)

    @router.delete("/schedules/{name}", summary="Forget settings; one that no code has is gone")
    async def remove_schedule(name: Name) -> dict[str, Any] | None:
        return await asking.ask("remove", name)

    @router.post("/schedules/{name}/backfill", summary="The ticks of a past range")
    async def backfill(name: Name, wanted: Range) -> dict[str, Any] | None:
        return await asking.ask("backfill", name, since=wanted.since, until=wanted.until)

    def add(word: Literal["pause", "resume", "run"], meaning: str) -> None:
        @router.post(f"/schedules/{{name}}/{word}", summary=meaning)
        async def command(name: Name) -> dict[str, Any] | None:
            return await asking.ask(word, name)

    add("pause", "No ticks until it is resumed")
    add("resume", "Ticks again, from now on")
    add("run", "A tick now")
