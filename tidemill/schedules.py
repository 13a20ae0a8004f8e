"""`@schedule`: a job that the clock asks for.

Owns the public decorator, `Tick`, and the checks of a plan, at import. Refuses to watch the clock:
a worker announces the schedule, and the ledger asks for its jobs.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, Literal, TypeVar, cast, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field

from tidemill.agents import zones
from tidemill.agents.worker.context import CHILDREN_MAX, Context
from tidemill.agents.worker.errors import JobDefinitionError
from tidemill.agents.worker.handlers import (
    DEFAULT_ATTEMPTS,
    DEFAULT_QUEUE,
    DEFAULT_TIMEOUT_SECONDS,
    REGISTRY,
    Handler,
    build_handler,
)
from tidemill.agents.worker.schedules import SCHEDULES, Declared
from tidemill.agents.worker.signature import base_of, is_coroutine, place_of
from tidemill.errors import NonRetryable
from tidemill.policies import Duration, seconds_of
from tidemill.requests import Request
from tidemill.schemas.portable import Reader
from tidemill.schemas.requests import TYPE_LENGTH_MAX, TYPE_PATTERN
from tidemill.schemas.schedules import (
    JITTER_MS_MAX,
    PAYLOAD_BYTES_MAX,
    PERIOD_MS_MIN,
    CatchUp,
    Fold,
    Gap,
    Overlap,
    ScheduleSpec,
)
from tidemill.streams.occurrences.cron import BadPattern, Cron
from tidemill.typed_jobs import JOBS, Job

F = TypeVar("F", bound=Callable[..., Any])

_NAME: Final = re.compile(TYPE_PATTERN)


class Tick(BaseModel):
    """One instant of a schedule: what its handler gets as its payload."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="Of the schedule.")
    at: datetime = Field(description="When the ledger asked for the job.")
    scheduled_for: datetime = Field(description="The instant that was due; it is in the job's id.")
    previous: datetime | None = Field(
        default=None, description="The instant before it that was dealt with; None: it is the "
        "first."
    )
    is_catch_up: bool = Field(default=False, description="It was missed, and runs now.")
    payload: dict[str, Any] = Field(default_factory=dict, description="The schedule's own.")


def schedule(
    name: str,
    *,
    every: Duration | None = None,
    cron: str | None = None,
    zone: str = "UTC",
    first: Literal["now"] | None = None,
    overlap: Overlap = "skip",
    catch_up: CatchUp = "last",
    jitter: Duration = 0,
    gap: Gap = "next",
    fold: Fold = "first",
    payload: Mapping[str, Any] | None = None,
    queue: str = DEFAULT_QUEUE,
    max_attempts: int = DEFAULT_ATTEMPTS,
    timeout_seconds: Duration = DEFAULT_TIMEOUT_SECONDS,
) -> Callable[[F], F]:
    """Run the function `every` so often, or when the pattern `cron` matches in `zone`.

    The function takes a `Tick`, and a `tidemill.Context` when it wants one. A list of `Request`
    that it returns becomes jobs, born when its own job succeeds; a dict or None is its result.
    Above `@job` it is that job which runs, with its queue and its time-out. It may stand several
    times on one function.

    every counts from the schedule's creation; first="now": the first tick is then. overlap: what
    becomes of a tick while an earlier one has not ended (skip, queue_one, queue_all, cancel_old,
    allow). catch_up: which ticks of a down-time run after it (none, last, all). jitter: each tick
    runs up to so much later. gap, fold: local times that do not exist (next, skip) or come twice
    (first, second, both). payload: what `tick.payload` is, or the payload of a job that takes no
    `Tick`.

    Raises JobDefinitionError, at import, that names the field and what to write.
    """
    where = f"@schedule({name!r})"
    if not _is_name(name):
        raise JobDefinitionError(
            f"{where}: the name must be a text of letters, digits and . _ : - (at most "
            f"{TYPE_LENGTH_MAX}), such as 'digest.daily'; write @schedule('digest.daily', "
            "cron='0 9 * * *')"
        )
    _choose(where, "overlap", overlap, Overlap)
    _choose(where, "catch_up", catch_up, CatchUp)
    _choose(where, "gap", gap, Gap)
    _choose(where, "fold", fold, Fold)
    if first not in (None, "now"):
        raise JobDefinitionError(f"{where}: first={first!r} is not known; write 'now' or leave out")
    plan = ScheduleSpec(
        type=name, every_ms=_period_ms(where, every, cron, zone), cron=_pattern(where, cron),
        zone=_zone(where, zone), gap=gap, fold=fold, is_first_now=first == "now", overlap=overlap,
        catch_up=catch_up, jitter_ms=_jitter_ms(where, jitter), payload=_payload(where, payload),
    )
    names = sys._getframe(1).f_locals
    seconds = seconds_of(timeout_seconds, f"{where}: timeout_seconds")

    def register(function: F) -> F:
        return cast(F, _register(
            where, plan, function, names, queue=queue, max_attempts=max_attempts,
            timeout_seconds=seconds,
        ))

    return register


def _register(
    where: str, plan: ScheduleSpec, function: Any, names: Mapping[str, Any], **options: Any
) -> Any:
    """The job that the schedule asks for, and the schedule. `plan.type` is the schedule's name."""
    name = plan.type
    known = function if isinstance(function, Job) else None
    if known is not None and known.type not in SCHEDULES:
        made, type_name = _of_job(known), known.type
    else:
        inner = function if known is None else known.__wrapped__
        handler = _handler(where, name, inner, names, **options)
        REGISTRY.add(handler)
        job: Job[Any, Any] = Job(handler, inner, names)
        JOBS.add(job)
        made, type_name = (job if known is None else known), name
    base = base_of(function)
    SCHEDULES.add(Declared(
        name, plan.model_copy(update={"type": type_name}), place_of(function),
        (base.__module__, base.__qualname__),
    ))
    return made


# -- the plan --------------------------------------------------------------------------------------


def _is_name(name: object) -> bool:
    return (
        isinstance(name, str) and len(name) <= TYPE_LENGTH_MAX and _NAME.fullmatch(name) is not None
    )


def _choose(where: str, field: str, given: object, choices: Any) -> None:
    if given not in get_args(choices):
        raise JobDefinitionError(
            f"{where}: {field}={given!r} is not known; write one of "
            f"{', '.join(repr(one) for one in get_args(choices))}"
        )


def _period_ms(where: str, every: Duration | None, cron: object, zone: str) -> int | None:
    if (every is None) == (cron is None):
        raise JobDefinitionError(
            f"{where}: give either every, such as '1min', or cron, such as '0 9 * * *'"
        )
    if every is None:
        return None
    if zone != "UTC":
        raise JobDefinitionError(
            f"{where}: zone={zone!r} means nothing to an interval; leave it out, or write cron"
        )
    period_ms = round(seconds_of(every, f"{where}: every") * 1000)
    if period_ms < PERIOD_MS_MIN:
        raise JobDefinitionError(
            f"{where}: every={every!r} is less than {PERIOD_MS_MIN / 1000:g} s; write '1s' or "
            "more, or let a job ask for its next one"
        )
    return period_ms


def _pattern(where: str, cron: object) -> str | None:
    if cron is None:
        return None
    if not isinstance(cron, str):
        raise JobDefinitionError(f"{where}: cron={cron!r} is no text; write such as '0 9 * * *'")
    try:
        return Cron(cron).pattern
    except BadPattern as error:
        raise JobDefinitionError(f"{where}: {error}") from None


def _zone(where: str, zone: object) -> str:
    if not isinstance(zone, str):
        raise JobDefinitionError(f"{where}: zone={zone!r} is no text; write 'Europe/Berlin'")
    if zone != "UTC":
        try:
            zones.zone(zone)
        except zones.UnknownZone as error:
            raise JobDefinitionError(f"{where}: {error}") from None
    return zone


def _jitter_ms(where: str, jitter: Duration) -> int:
    jitter_ms = round(seconds_of(jitter, f"{where}: jitter") * 1000)
    if jitter_ms > JITTER_MS_MAX:
        raise JobDefinitionError(f"{where}: jitter={jitter!r} is more than a day; write less")
    return jitter_ms


def _payload(where: str, payload: Mapping[str, Any] | None) -> dict[str, Any]:
    if payload is None:
        return {}
    try:
        text = orjson.dumps(dict(payload))
    except (TypeError, ValueError) as error:
        raise JobDefinitionError(f"{where}: payload is no dict of JSON: {error}") from None
    if len(text) > PAYLOAD_BYTES_MAX:
        raise JobDefinitionError(
            f"{where}: payload has {len(text)} bytes, at most {PAYLOAD_BYTES_MAX} are taken; store "
            "the data elsewhere and write a reference"
        )
    return dict(orjson.loads(text))


# -- the handler -----------------------------------------------------------------------------------


def _handler(
    where: str, name: str, function: Callable[..., Any], names: Mapping[str, Any], *, queue: str,
    max_attempts: int, timeout_seconds: float,
) -> Handler:
    """The handler of a function that stands under `@schedule` alone."""
    handler = build_handler(
        name, _with_tick(function), queue=queue, max_attempts=max_attempts,
        timeout_seconds=timeout_seconds, local_names=names,
    )
    if handler.model is None:
        handler = replace(handler, model=Tick, reader=Reader(Tick))
    elif handler.model is not Tick:
        raise JobDefinitionError(
            f"{where} on {place_of(function)}: it takes {handler.model!r}, and a schedule's "
            "payload is a tidemill.Tick; annotate it so, or put @schedule above @job"
        )
    return _taking_ticks(handler)


def _with_tick(function: Any) -> Any:
    """A function without parameters is called without any."""
    if not callable(function) or inspect.signature(function).parameters:
        return function
    if is_coroutine(function):

        @functools.wraps(function)
        async def run(tick: Tick) -> Any:
            return await function()
    else:

        @functools.wraps(function)
        def run(tick: Tick) -> Any:
            return function()

    run.__signature__ = inspect.Signature([  # type: ignore[attr-defined]
        inspect.Parameter("tick", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ])
    return run


def _of_job(job: Job[Any, Any]) -> Job[Any, Any]:
    """The same job; one that takes a `Tick` may return requests."""
    handler = job._handler
    if handler.model is Tick and not handler.takes_tick:
        handler = _taking_ticks(handler)
        REGISTRY.add(handler)
        job._handler = handler
    return job


def _taking_ticks(handler: Handler) -> Handler:
    function, takes_context = handler.function, handler.takes_context
    if handler.runs_as == "async":

        @functools.wraps(function)
        async def run(tick: Tick, context: Context) -> Any:
            given = (tick, context) if takes_context else (tick,)
            return _born(await function(*given), context)
    else:

        @functools.wraps(function)
        def run(tick: Tick, context: Context) -> Any:
            given = (tick, context) if takes_context else (tick,)
            return _born(function(*given), context)

    return replace(handler, function=run, takes_context=True, takes_tick=True, writer=None)


def _born(result: Any, context: Context) -> Any:
    """Requests become children of the tick's job."""
    if not isinstance(result, list):
        return result
    if len(result) > CHILDREN_MAX:
        raise NonRetryable(
            f"a tick may return {CHILDREN_MAX} requests, this one has {len(result)}; let a job ask "
            "for the others, or gather them: await context.gather(name, requests)",
            code="TOO_MANY_REQUESTS",
        )
    for each in result:
        if not isinstance(each, Request):
            raise NonRetryable(
                f"a tick returns a list of tidemill.Request, a dict or None; the list has a "
                f"{type(each).__name__}", code="NOT_A_REQUEST",
            )
        context.enqueue(
            each.type, each.payload, user_id=each.user_id, job_id=each.job_id, queue=each.queue,
            priority=each.priority, run_at=each.run_at, expires_at=each.expires_at,
            unique_key=each.unique_key, max_attempts=each.max_attempts,
            timeout_seconds=each.timeout_seconds, source=each.source, tags=each.tags,
            batch_id=each.batch_id,
        )
    return {"requested": len(result)}
