"""Handlers: a user's function with its policies, and the registry of all of them.

Owns what a definition may say and the registry by type. Refuses to know how a handler is run
(`tidemill.agents.worker.executor`) and how its signature is read
(`tidemill.agents.worker.signature`).
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import orjson

from tidemill.agents.worker.context import Context
from tidemill.agents.worker.errors import JobDefinitionError
from tidemill.agents.worker.results import Writer, writer_of
from tidemill.agents.worker.signature import Signature, base_of, place_of, read_signature
from tidemill.schemas import SCHEMA_VERSION
from tidemill.schemas.portable import Reader
from tidemill.schemas.requests import (
    ATTEMPTS_MAX,
    QUEUE_LENGTH_MAX,
    QUEUE_PATTERN,
    TIMEOUT_SECONDS_MAX,
    TYPE_LENGTH_MAX,
    TYPE_PATTERN,
)
from tidemill.schemas.wire import (
    COLLAPSE_LENGTH_MAX,
    COLLAPSE_PATTERN,
    BackoffSpec,
    ConcurrencySpec,
    Definition,
    LimitSpec,
    RunsAs,
)

DEFAULT_QUEUE: Final = "default"
DEFAULT_ATTEMPTS: Final = 3  # attempts: enough for a passing fault
DEFAULT_TIMEOUT_SECONDS: Final = 300.0  # seconds: longer than most calls take

logger = logging.getLogger("tidemill.worker")

_TYPE: Final = re.compile(TYPE_PATTERN)
_QUEUE: Final = re.compile(QUEUE_PATTERN)


class HasContext(Protocol):
    """An attempt, as far as a call needs it."""

    def open_context(self) -> Context: ...


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """One type of job and the function that runs it."""

    type: str
    function: Callable[..., Any]
    queue: str
    max_attempts: int
    timeout_seconds: float
    backoff: BackoffSpec
    limits: tuple[LimitSpec, ...]
    unique_by: Literal["user"] | None
    runs_as: RunsAs
    #: The payload's annotation; None: the handler takes a dict.
    model: Any
    takes_context: bool
    #: Reads payloads as `model`; None as there.
    reader: Reader | None
    #: Makes of what the function returns what can be written; None: it is written as it is.
    writer: Writer | None
    concurrency: ConcurrencySpec | None = None
    #: Its payload is a schedule's tick.
    takes_tick: bool = False
    collapse_by: str | None = None

    def read_payload(self, payload: dict[str, Any]) -> Any:
        """What the function receives: the model or the dict; raises pydantic's ValidationError."""
        return payload if self.reader is None else self.reader.read(payload)

    def arguments(self, payload: dict[str, Any], attempt: HasContext) -> tuple[Any, ...]:
        """The positional arguments of one call."""
        read = self.read_payload(payload)
        return (read, attempt.open_context()) if self.takes_context else (read,)

    def definition(self) -> Definition:
        """What the worker publishes about this type."""
        return Definition(
            schema_version=SCHEMA_VERSION,
            type=self.type,
            queue=self.queue,
            max_attempts=self.max_attempts,
            timeout_ms=max(1, round(self.timeout_seconds * 1000)),
            backoff=self.backoff,
            limits=self.limits,
            concurrency=self.concurrency,
            unique_by=self.unique_by,
            collapse_by=self.collapse_by,
            runs_as=self.runs_as,
            takes_tick=self.takes_tick,
            payload_schema=self._payload_schema(),
        )

    def _payload_schema(self) -> dict[str, Any] | None:
        """For people and tools; None also where the model has no schema, which hinders no job."""
        if self.reader is None:
            return None
        try:
            schema = self.reader.json_schema()
            orjson.dumps(schema)
        except Exception as error:  # noqa: BLE001  # a user's own schema code may raise anything
            logger.warning(
                "the payload %s of the job %r on %s has no JSON Schema and is published without: "
                "%s: %s", self.reader.name, self.type, place_of(self.function),
                type(error).__name__, str(error).partition("\n")[0],
            )
            return None
        return schema


class Registry:
    """Handlers by type. One type has one handler."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def add(self, handler: Handler) -> None:
        """Register; a second function for the same type is an error that names both."""
        known = self._handlers.get(handler.type)
        if known is not None and _identity(known.function) != _identity(handler.function):
            raise JobDefinitionError(
                f"two handlers for the job type {handler.type!r}: {place_of(known.function)} and "
                f"{place_of(handler.function)}; give one of them another type"
            )
        self._handlers[handler.type] = handler

    def get(self, type_name: str) -> Handler | None:
        return self._handlers.get(type_name)

    def __len__(self) -> int:
        return len(self._handlers)

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._handlers.values())

    def clear(self) -> None:
        """Forget everything; for tests."""
        self._handlers.clear()


REGISTRY: Final = Registry()
"""Where `tidemill.job` registers."""


def _identity(function: Callable[..., Any]) -> tuple[str, str]:
    function = base_of(function)
    # A module that is imported again, by whatever name, makes new functions at the same place.
    code = getattr(function, "__code__", None)
    file = "" if code is None else code.co_filename
    home = os.path.realpath(file) if os.path.isfile(file) else function.__module__
    return home, function.__qualname__


def build_handler(
    type_name: str,
    function: Callable[..., Any],
    *,
    queue: str = DEFAULT_QUEUE,
    max_attempts: int = DEFAULT_ATTEMPTS,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    backoff: BackoffSpec | None = None,
    limits: Sequence[LimitSpec] = (),
    concurrency: ConcurrencySpec | None = None,
    unique_by: str | None = None,
    collapse_by: str | None = None,
    process: bool = False,
    local_names: Mapping[str, Any] | None = None,
) -> Handler:
    """Check everything and return the handler; JobDefinitionError says what to mend.

    `local_names` are the names around the function, for annotations of a function in a function.
    """
    if isinstance(function, type | classmethod) or not callable(function):
        raise JobDefinitionError(
            f"@job({type_name!r}) must decorate a function, not {function!r}; put it on the "
            "innermost `def`, above no other decorator that returns something else"
        )
    where = f"@job({type_name!r}) on {place_of(function)}"
    _check_words(where, type_name, queue, unique_by)
    _check_collapse_by(where, collapse_by)
    _check_numbers(where, max_attempts, timeout_seconds)
    signature: Signature = read_signature(where, function, local_names or {})
    base = base_of(function)
    return Handler(
        type=type_name,
        function=signature.function,
        queue=queue,
        max_attempts=max_attempts,
        timeout_seconds=float(timeout_seconds),
        backoff=backoff or BackoffSpec(),
        limits=tuple(limits),
        concurrency=concurrency,
        unique_by="user" if unique_by == "user" else None,
        collapse_by=collapse_by,
        runs_as=_runs_as(where, base, signature, process),
        model=signature.model,
        takes_context=signature.takes_context,
        reader=signature.reader,
        writer=writer_of(where, base, local_names or {}),
    )


def _runs_as(
    where: str, base: Callable[..., Any], signature: Signature, process: bool
) -> RunsAs:
    if inspect.isgeneratorfunction(base) or inspect.isasyncgenfunction(base):
        raise JobDefinitionError(f"{where}: a generator cannot be a handler; return the result")
    if not process:
        return "async" if signature.is_coroutine else "thread"
    if "<locals>" in getattr(base, "__qualname__", ""):
        raise JobDefinitionError(
            f"{where}: with process=True the function must stand at the top of its module, "
            "because a child process imports it by name"
        )
    return "process"


def _check_words(where: str, type_name: object, queue: object, unique_by: object) -> None:
    if (
        not isinstance(type_name, str)
        or len(type_name) > TYPE_LENGTH_MAX
        or _TYPE.fullmatch(type_name) is None
    ):
        raise JobDefinitionError(
            f"{where}: the type must be a text of letters, digits and . _ : - (at most "
            f"{TYPE_LENGTH_MAX}), such as 'mail.send'"
        )
    if (
        not isinstance(queue, str)
        or len(queue) > QUEUE_LENGTH_MAX
        or _QUEUE.fullmatch(queue) is None
    ):
        raise JobDefinitionError(
            f"{where}: queue={queue!r} must be a text of letters, digits and . _ - (at most "
            f"{QUEUE_LENGTH_MAX})"
        )
    if unique_by not in (None, "user"):
        raise JobDefinitionError(
            f"{where}: unique_by={unique_by!r} is not known; use unique_by='user' or leave it out"
        )


def _check_collapse_by(where: str, path: object) -> None:
    if path is not None and (
        not isinstance(path, str)
        or len(path) > COLLAPSE_LENGTH_MAX
        or re.fullmatch(COLLAPSE_PATTERN, path) is None
    ):
        raise JobDefinitionError(
            f"{where}: collapse_by={path!r} must be the path to a value of the payload, such as "
            "'payload.report_id'"
        )


def _check_numbers(where: str, max_attempts: object, timeout_seconds: object) -> None:
    if (
        not isinstance(max_attempts, int)
        or isinstance(max_attempts, bool)
        or not 1 <= max_attempts <= ATTEMPTS_MAX
    ):
        raise JobDefinitionError(
            f"{where}: max_attempts={max_attempts!r} must be a whole number from 1 to "
            f"{ATTEMPTS_MAX}; 1 is no retry"
        )
    if (
        not isinstance(timeout_seconds, int | float)
        or isinstance(timeout_seconds, bool)
        or not math.isfinite(timeout_seconds)
        or not 0 < timeout_seconds <= TIMEOUT_SECONDS_MAX
    ):
        raise JobDefinitionError(
            f"{where}: timeout_seconds={timeout_seconds!r} must be more than 0 and at most "
            f"{TIMEOUT_SECONDS_MAX:.0f} (a day)"
        )
