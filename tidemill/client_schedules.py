"""Schedules as a program sees them: `client.schedules`.

Owns what is told of a schedule, the settings that may be given, and the errors. Refuses to know how
a command travels (`tidemill.agents.schedule_log`) and what it does to a schedule. Each call reads
`jobs.schedules` anew, over a connection of its own.

    client.schedules.set("digest.daily", cron="0 9 * * *", zone="Europe/Berlin", type="digest.send")
    print(client.schedules.show("digest.daily").next_at)
    print(client.schedules.run("digest.daily").result_sync().status)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, Protocol, TypedDict, TypeVar, Unpack

from pydantic import ValidationError

from tidemill.agents import answers
from tidemill.agents.schedule_log import (
    ANSWER_SECONDS,
    ScheduleLog,
    count_of,
    merged,
    next_of,
    problem_of,
)
from tidemill.agents.worker.durations import Duration, seconds_of
from tidemill.agents.worker.errors import JobDefinitionError
from tidemill.answers import AnswerTimeout
from tidemill.handles import Binding, JobHandle
from tidemill.requests import ClientError, InvalidRequest, JobIds
from tidemill.schemas.first_problem import first_problem
from tidemill.schemas.schedules import (
    BACKFILL_MAX,
    USER_PREFIX,
    CatchUp,
    Fold,
    Gap,
    Overlap,
    ScheduleCommand,
    ScheduleRecord,
    ScheduleSpec,
    ScheduleWord,
)
from tidemill.schemas.topics import Topics
from tidemill.streams.occurrences.due import occurrence_id

T = TypeVar("T")
ACTOR: Final = "client"  # who asks, where nobody is named


class UnknownSchedule(ClientError, LookupError):
    """There is no schedule of that name."""


class ScheduleRefused(ClientError):
    """The ledger says no. The text has its reason."""


class Settings(TypedDict, total=False):
    """What may be set; of a schedule that is known the rest stays as it is."""

    type: str
    every: Duration
    cron: str
    zone: str
    first: Literal["now"] | None
    overlap: Overlap
    catch_up: CatchUp
    jitter: Duration
    gap: Gap
    fold: Fold
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """What a schedule is now. Exactly one of `every_seconds` and `cron` is there.

    `origin`: "code", or "live" where settings by command rule. `next_at`: None while it has no
    ticks: it is paused, orphaned, or has a `problem`. `change` and `actor`: what was done to it
    last, and by whom; None: by nobody.
    """

    name: str
    type: str
    every_seconds: float | None
    cron: str | None
    zone: str
    first: Literal["now"] | None
    overlap: Overlap
    catch_up: CatchUp
    jitter_seconds: float
    gap: Gap
    fold: Fold
    payload: Mapping[str, Any]
    origin: Literal["code", "live"]
    is_paused: bool
    is_orphaned: bool
    problem: str | None
    created_at: datetime
    next_at: datetime | None
    change: str
    changed_at: datetime
    actor: str | None


Infos = list[ScheduleInfo]  # by name; methods are called `list` here


class Connected(Protocol):
    """What of a client is needed here."""

    kafka: str
    topics: Topics
    binding: Binding


class ClientSchedules:
    """`client.schedules`. Raises AnswerTimeout when the ledger does not answer within 10 s, and
    ClientError when Kafka does not."""

    def __init__(self, core: Connected) -> None:
        self._core = core
        self._ids = JobIds()

    def list(self) -> Infos:
        """All of them, by name."""
        records = self._with_log(lambda log: dict(log.records))
        return [_info(records[name]) for name in sorted(records)]

    def show(self, name: str) -> ScheduleInfo:
        """One of them. Raises UnknownSchedule."""
        return _info(self._with_log(lambda log: _known(log, name)))

    def set(
        self, name: str, *, actor: str | None = None, **settings: Unpack[Settings]
    ) -> ScheduleInfo:
        """Make a schedule, or change what is given of one: `every`, `cron`, `zone`, `type` and so
        on, as `@schedule` names them. Rules over the code until `remove`.

        Raises InvalidRequest that names the field.
        """
        given = _given(settings)

        def work(log: ScheduleLog) -> ScheduleRecord | None:
            spec = _spec(merged(log.records.get(name), given))
            return _ask(log, self._command("set", name, actor, spec=spec))

        return _told(name, self._with_log(work))

    def remove(self, name: str, *, actor: str | None = None) -> ScheduleInfo | None:
        """Forget what was set; a schedule that no code has is gone, and None comes back."""
        record = self._asked("remove", name, actor)
        return None if record is None else _info(record)

    def pause(self, name: str, *, actor: str | None = None) -> ScheduleInfo:
        """No ticks until it is resumed."""
        return _told(name, self._asked("pause", name, actor))

    def resume(self, name: str, *, actor: str | None = None) -> ScheduleInfo:
        """Ticks again, from now on."""
        return _told(name, self._asked("resume", name, actor))

    def run(self, name: str, *, actor: str | None = None) -> JobHandle:
        """A tick now: the handle of its job."""
        now_ms = time.time_ns() // 1_000_000
        at = datetime.fromtimestamp(now_ms / 1000, UTC)
        command = self._command("run", name, actor, at=at)
        record = _there(name, self._with_log(lambda log: _ask_known(log, command)))
        instant_ms = int(at.timestamp() * 1000)  # as the ledger reads it
        job_id = f"{occurrence_id(name, instant_ms)}!{command.command_id}"
        user_id, topic = USER_PREFIX + name, self._core.topics.requested
        handle = JobHandle(job_id, user_id, record.spec.type, topic, now_ms)
        return handle.bound(self._core.binding)

    def backfill(
        self, name: str, since: datetime, until: datetime, *, actor: str | None = None
    ) -> int:
        """Ask for the ticks later than `since`, up to and with `until`: how many they are.

        They are counted first: InvalidRequest for none, and for more than 1,000.
        """
        command = self._command("backfill", name, actor, since=since, until=until)

        def work(log: ScheduleLog) -> int:
            found = _count(log, name, since, until)
            if not 0 < found <= BACKFILL_MAX:
                raise InvalidRequest(
                    f"since, until: the range has {found} ticks; take one with 1 to {BACKFILL_MAX}"
                )
            _ask(log, command)
            return found

        return self._with_log(work)

    def count(self, name: str, since: datetime, until: datetime) -> int:
        """How many ticks a range has; from 10,000 on perhaps more."""
        return self._with_log(lambda log: _count(log, name, since, until))

    # --- how ---

    def _with_log(self, work: Callable[[ScheduleLog], T]) -> T:
        try:
            with ScheduleLog(self._core.kafka, self._core.topics) as log:
                return work(log)
        except answers.AnswerTimeout as error:
            raise AnswerTimeout(str(error)) from None
        except answers.AnswerError as error:
            raise ClientError(str(error)) from error

    def _asked(self, word: ScheduleWord, name: str, actor: str | None) -> ScheduleRecord | None:
        command = self._command(word, name, actor)
        return self._with_log(lambda log: _ask_known(log, command))

    def _command(
        self, word: ScheduleWord, name: str, actor: str | None, **fields: Any
    ) -> ScheduleCommand:
        try:
            return ScheduleCommand(
                command="schedule", word=word, name=name, command_id=self._ids.next(),
                actor=actor or ACTOR, **fields,
            )
        except ValidationError as error:
            raise _invalid(error) from None


class AsyncClientSchedules:
    """`client.schedules` of an `AsyncClient`: the same methods, to be awaited; they run in
    threads."""

    def __init__(self, core: Connected) -> None:
        self._schedules = ClientSchedules(core)

    async def list(self) -> Infos:
        """As `ClientSchedules.list`."""
        return await asyncio.to_thread(self._schedules.list)

    async def show(self, name: str) -> ScheduleInfo:
        """As `ClientSchedules.show`."""
        return await asyncio.to_thread(self._schedules.show, name)

    async def set(
        self, name: str, *, actor: str | None = None, **settings: Unpack[Settings]
    ) -> ScheduleInfo:
        """As `ClientSchedules.set`."""
        return await asyncio.to_thread(self._schedules.set, name, actor=actor, **settings)

    async def remove(self, name: str, *, actor: str | None = None) -> ScheduleInfo | None:
        """As `ClientSchedules.remove`."""
        return await asyncio.to_thread(self._schedules.remove, name, actor=actor)

    async def pause(self, name: str, *, actor: str | None = None) -> ScheduleInfo:
        """As `ClientSchedules.pause`."""
        return await asyncio.to_thread(self._schedules.pause, name, actor=actor)

    async def resume(self, name: str, *, actor: str | None = None) -> ScheduleInfo:
        """As `ClientSchedules.resume`."""
        return await asyncio.to_thread(self._schedules.resume, name, actor=actor)

    async def run(self, name: str, *, actor: str | None = None) -> JobHandle:
        """As `ClientSchedules.run`."""
        return await asyncio.to_thread(self._schedules.run, name, actor=actor)

    async def backfill(
        self, name: str, since: datetime, until: datetime, *, actor: str | None = None
    ) -> int:
        """As `ClientSchedules.backfill`."""
        return await asyncio.to_thread(self._schedules.backfill, name, since, until, actor=actor)

    async def count(self, name: str, since: datetime, until: datetime) -> int:
        """As `ClientSchedules.count`."""
        return await asyncio.to_thread(self._schedules.count, name, since, until)


# -- what is given ---------------------------------------------------------------------------------


def _given(settings: Settings) -> dict[str, Any]:
    """The fields of a plan. Raises InvalidRequest for a duration that is none."""
    given: dict[str, Any] = dict(settings)
    if "every" in given and "cron" in given:
        raise InvalidRequest("every, cron: give one of them")
    for name, field in (("every", "every_ms"), ("jitter", "jitter_ms")):
        if name in given:
            given[field] = _ms(given.pop(name), name)
    if "first" in given:
        given["is_first_now"] = given.pop("first") == "now"
    if "payload" in given:
        given["payload"] = dict(given["payload"])
    return given


def _ms(duration: Duration, field: str) -> int:
    try:
        return round(seconds_of(duration, field) * 1000)
    except JobDefinitionError as error:
        raise InvalidRequest(str(error)) from None


def _spec(fields: dict[str, Any]) -> ScheduleSpec:
    if "type" not in fields:
        raise InvalidRequest("type: a new schedule needs the type of its jobs; give type='…'")
    unknown = sorted(set(fields) - set(ScheduleSpec.model_fields))
    if unknown:
        raise InvalidRequest(
            f"{unknown[0]}: is nothing of a schedule; there are "
            f"{', '.join(Settings.__annotations__)}"
        )
    try:
        spec = ScheduleSpec(**fields)
    except ValidationError as error:
        raise _invalid(error) from None
    wrong = problem_of(spec)
    if wrong is not None:
        raise InvalidRequest(f"{wrong[0]}: {wrong[1]}")
    return spec


def _invalid(error: ValidationError) -> InvalidRequest:
    first = first_problem(error)
    return InvalidRequest(f"{first.path.removesuffix('_ms')}: {first.message}; mend it")


# -- what comes back -------------------------------------------------------------------------------


def _known(log: ScheduleLog, name: str) -> ScheduleRecord:
    record = log.records.get(name)
    if record is None:
        raise UnknownSchedule(f"there is no schedule {name!r}; client.schedules.list() has them")
    return record


def _count(log: ScheduleLog, name: str, since: datetime, until: datetime) -> int:
    found = count_of(
        _known(log, name), int(since.timestamp() * 1000), int(until.timestamp() * 1000)
    )
    return found.number


def _ask_known(log: ScheduleLog, command: ScheduleCommand) -> ScheduleRecord | None:
    _known(log, command.name)
    return _ask(log, command)


def _ask(log: ScheduleLog, command: ScheduleCommand) -> ScheduleRecord | None:
    record = log.ask(command, ANSWER_SECONDS)
    if record is not None and record.refused is not None:
        raise ScheduleRefused(
            f"the {command.word} of schedule {command.name!r} was refused: {record.refused}"
        )
    return record


def _there(name: str, record: ScheduleRecord | None) -> ScheduleRecord:
    if record is None:
        raise UnknownSchedule(f"schedule {name!r} was removed meanwhile")
    return record


def _told(name: str, record: ScheduleRecord | None) -> ScheduleInfo:
    return _info(_there(name, record))


def _info(record: ScheduleRecord) -> ScheduleInfo:
    spec = record.spec
    next_ms = next_of(record, time.time_ns() // 1_000_000)
    return ScheduleInfo(
        name=record.name, type=spec.type,
        every_seconds=None if spec.every_ms is None else spec.every_ms / 1000, cron=spec.cron,
        zone=spec.zone, first="now" if spec.is_first_now else None, overlap=spec.overlap,
        catch_up=spec.catch_up, jitter_seconds=spec.jitter_ms / 1000, gap=spec.gap,
        fold=spec.fold, payload=spec.payload, origin=record.origin, is_paused=record.is_paused,
        is_orphaned=record.is_orphaned, problem=record.problem,
        created_at=_instant(record.created_at),
        next_at=None if next_ms is None else _instant(next_ms), change=record.change,
        changed_at=_instant(record.changed_at), actor=record.actor,
    )


def _instant(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)
