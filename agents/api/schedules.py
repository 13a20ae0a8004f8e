"""Schedules over HTTP: what each is, and commands with the ledger's answer.

Owns the paths under `/api/schedules`. Needs no ClickHouse. Refuses to know what a command does.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, Final, Literal, TypeVar

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tidemill.agents.api.problems import Problem, answer_problems, invalid_parameter
from tidemill.agents.api.schedule_follower import ScheduleFollower
from tidemill.agents.schedule_log import next_of, problem_of
from tidemill.schemas.requests import TYPE_LENGTH_MAX, Instant
from tidemill.schemas.schedules import ScheduleCommand, ScheduleRecord, ScheduleSpec, ScheduleWord
from tidemill.schemas.topics import Topics

THREADS: Final = 8  # answers that are waited for at once
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


class ScheduleCommander:
    """Looks at schedules, and sends commands about them, aside the loop."""

    def __init__(self, kafka: str, topic_prefix: str) -> None:
        self._follower = ScheduleFollower(kafka, Topics(topic_prefix))
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tidemill-schedule")

    def close(self) -> None:
        """Let reader and threads go; who still waits gets no answer."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._follower.close()

    async def records(self) -> dict[str, ScheduleRecord]:
        """All of them by name; Problem when they cannot be read."""
        return await self._aside(self._follower.records)

    async def record(self, name: str) -> ScheduleRecord:
        """One of them; Problem when there is none of that name."""
        record = await self._aside(partial(self._follower.record, name))
        if record is None:
            raise _unknown(name)
        return record

    async def ask(
        self, word: ScheduleWord, name: str, actor: str, **fields: Any
    ) -> ScheduleRecord | None:
        """The schedule after a command; None: it is gone. Problem for a refusal, or no answer."""
        try:
            command = ScheduleCommand(
                command="schedule", word=word, name=name, command_id=uuid.uuid4().hex,
                actor=actor, **fields,
            )
        except ValidationError as error:
            raise invalid_parameter(error) from None
        if word != "set":
            await self.record(name)
        record = await self._aside(partial(self._follower.ask, command))
        if record is not None and record.refused is not None:
            raise Problem(
                409, "command-refused", f"the {word} of {name!r} was refused: {record.refused}",
                field="name",
            )
        return record

    async def _aside(self, work: Callable[[], R]) -> R:
        with answer_problems():
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _unknown(name: str) -> Problem:
    return Problem(
        404, "unknown-schedule", f"there is no schedule {name!r}; GET /api/schedules names them",
        field="name",
    )


def add_schedules(router: APIRouter, commander: ScheduleCommander) -> None:
    """The routes under /api."""

    async def ask(word: ScheduleWord, name: str, **fields: Any) -> dict[str, Any] | None:
        record = await commander.ask(word, name, "api", **fields)
        return None if record is None else shown(record)

    @router.get("/schedules", summary="All schedules")
    async def list_schedules() -> Schedules:
        records = await commander.records()

        def all_shown() -> Schedules:
            return Schedules(schedules=[shown(records[name]) for name in sorted(records)])

        return await asyncio.to_thread(all_shown)

    @router.get("/schedules/{name}", summary="One schedule")
    async def show_schedule(name: Name) -> dict[str, Any]:
        return shown(await commander.record(name))

    @router.put("/schedules/{name}", summary="Make a schedule, or set what it is from now on")
    async def set_schedule(name: Name, settings: Settings) -> dict[str, Any] | None:
        wrong = problem_of(settings)
        if wrong is not None:
            raise Problem(422, "invalid-field", wrong[1], field=wrong[0])
        spec = ScheduleSpec(**settings.model_dump())
        return await ask("set", name, spec=spec)

    @router.delete("/schedules/{name}", summary="Forget settings; one that no code has is gone")
    async def remove_schedule(name: Name) -> dict[str, Any] | None:
        return await ask("remove", name)

    @router.post("/schedules/{name}/backfill", summary="The ticks of a past range")
    async def backfill(name: Name, wanted: Range) -> dict[str, Any] | None:
        return await ask("backfill", name, since=wanted.since, until=wanted.until)

    def add(word: Literal["pause", "resume", "run"], meaning: str) -> None:
        @router.post(f"/schedules/{{name}}/{word}", summary=meaning)
        async def command(name: Name) -> dict[str, Any] | None:
            return await ask(word, name)

    add("pause", "No ticks until it is resumed")
    add("resume", "Ticks again, from now on")
    add("run", "A tick now")
