"""What a handler may wait for and remember: steps, sleeps and signals, by name.

Owns the rules of one attempt: a name is used once, and nothing else is asked for while it waits.
Refuses to know how a result becomes durable (`Keep`), and what comes of a suspension
(`tidemill.streams.suspensions`).

A handler that waits ends its attempt by an exception, `Suspended`. When what it waits for is there
the handler runs from its beginning, and what it did before under a name comes back from memory.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import re
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final

import orjson
from pydantic import ValidationError

from tidemill.agents.worker import gathering, results
from tidemill.agents.worker.completed import CompletedJob
from tidemill.agents.worker.durations import Duration, seconds_of
from tidemill.agents.worker.errors import JobDefinitionError, NonRetryable, SignalTimeout
from tidemill.agents.worker.gathering import Ends, Gather
from tidemill.schemas.first_problem import first_problem
from tidemill.schemas.portable import Reader, reader_of
from tidemill.schemas.requests import MEMORY_BYTES_MAX, STEP_BYTES_MAX, STEP_NAME_PATTERN
from tidemill.schemas.words import ErrorCode

ENTRY_BYTES: Final = 64  # what an entry costs beside its name and value, at least as in the ledger

Keep = Callable[[dict[str, Any]], Future[None]]
"""Makes a word of the attempt durable, such as a step's result; done once it is. From any thread.
"""

_NAME: Final = re.compile(STEP_NAME_PATTERN.removesuffix("$") + r"\Z")
_in_step: contextvars.ContextVar[bool] = contextvars.ContextVar("tidemill_step", default=False)


class Suspended(BaseException):
    """Ends an attempt whose handler waits. Let it pass: catch `Exception`, not `BaseException`."""

    def __init__(self, waits: dict[str, Any]) -> None:
        super().__init__(f"waits for {waits['kind']} {waits['name']!r}")
        self.waits = waits


class Suspending:
    """Names, memory and the one suspension of one attempt."""

    def __init__(self, memory: list[list[Any]] | None, keep: Keep | None) -> None:
        self._memory: dict[str, tuple[str, Any]] = {}
        self._ends: dict[str, list[list[Any]]] = {}  # of gathers that are over, by name
        for name, kind, value in memory or ():
            if kind == gathering.ENDS:
                self._ends.setdefault(name, []).extend(value)
            else:
                self._memory[name] = (kind, value)
        self._bytes: int | None = None  # of all that is remembered, once somebody has asked
        self._keep = keep
        self._lock = threading.Lock()  # steps of one handler may run on several threads
        self._names: set[str] = set()
        self._running = 0  # steps
        #: What ends the attempt; None while nothing does.
        self.suspended: Suspended | None = None
        #: What the handler has done against the rules; it fails the job, whoever catches it.
        self.misuse: NonRetryable | None = None

    def step(self, name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """See `Context.step`."""
        if not callable(function):
            raise TypeError(f"step {name!r}: give the function and its arguments, not a result")
        known = self._begin(name, "step")
        if _has_loop():
            return self._step_async(name, function, args, known)
        if known is not None:
            return known[1]
        value, text = self._run(name, function, args)
        self._store(name, text).result()
        return value

    def sleep(self, name: str, duration: Duration) -> Any:
        """See `Context.sleep`."""
        for_ms = _ms_of(duration, f"sleep {name!r}: duration")
        known = self._begin(name, "sleep")
        if _has_loop():
            return self._sleep_async(name, for_ms, known)
        if known is None:
            self._suspend({"kind": "sleep", "name": name, "for_ms": for_ms})
        return None

    def gather(self, asked: Gather) -> Any:
        """See `Context.gather`."""
        ends = self._ends_of(asked.name, self._begin(asked.name, gathering.KIND))
        return self._gather_async(asked, ends) if _has_loop() else self._gather(asked, ends)

    def wait(self, name: str, model: Any, timeout: Duration | None) -> Any:
        """See `Context.wait`."""
        reader = _reader_of(name, model)
        timeout_ms = None if timeout is None else _ms_of(timeout, f"wait {name!r}: timeout")
        known = self._begin(name, "wait")
        waits = {"kind": "signal", "name": name, "timeout_ms": timeout_ms}
        if _has_loop():
            return self._wait_async(waits, reader, known)
        return self._waited(waits, reader, known)

    def refuse_in_step(self) -> None:
        """`enqueue` of a step that comes back from memory would ask for nothing."""
        if _in_step.get():
            raise RuntimeError(
                "enqueue is called inside a step, which runs once, while its job's children are "
                "asked for by the run that succeeds: call it outside"
            )

    # --- rules ---

    def _begin(self, name: str, kind: str) -> tuple[str, Any] | None:
        """Takes the name; what is remembered under it."""
        if _NAME.match(str(name)) is None or type(name) is not str:
            raise ValueError(f"name {name!r} must be a text of 1 to 128 characters")
        if _in_step.get():
            raise self._misuse(
                ErrorCode.SUSPENDED_SIDE_BY_SIDE, f"{kind} {name!r} is called inside a step"
            )
        with self._lock:
            if name in self._names:
                raise self._misuse(
                    ErrorCode.NAME_USED_TWICE,
                    f"the name {name!r} is used twice in one run: give each step and each wait a "
                    "name of its own, in a loop with the item in it",
                )
            self._names.add(name)
            self._check_alone(kind, name, but_steps=kind == "step")
        return self._memory.get(name)

    def _check_alone(self, kind: str, name: str, *, but_steps: bool) -> None:
        other = self.suspended
        if other is not None or (self._running and not but_steps):
            what = "a step runs" if other is None else f"the handler {other}"
            raise self._misuse(
                ErrorCode.SUSPENDED_SIDE_BY_SIDE,
                f"{kind} {name!r} is called while {what}: do one after the other",
            )

    def _misuse(self, code: ErrorCode, message: str) -> NonRetryable:
        self.misuse = NonRetryable(message, code=code)
        return self.misuse

    # --- steps ---

    def _run(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> tuple[Any, bytes]:
        """The value and its JSON; on a thread of the handler, or one of its own."""
        token = _in_step.set(True)
        self._running += 1
        try:
            value = function(*args)
            if inspect.iscoroutine(value):
                value = asyncio.run(value)
        finally:
            self._running -= 1
            _in_step.reset(token)
        return value, self._text(name, value)

    async def _step_async(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...],
        known: tuple[str, Any] | None,
    ) -> Any:
        if known is not None:
            return known[1]
        token = _in_step.set(True)
        self._running += 1
        try:
            if inspect.iscoroutinefunction(function):
                value = await function(*args)
            else:
                value = await asyncio.to_thread(function, *args)
                if isinstance(value, Awaitable):
                    value = await value
            _in_step.reset(token)
            await asyncio.wrap_future(self._store(name, self._text(name, value)))
        finally:
            _in_step.set(False)
            self._running -= 1
        return value

    def _text(self, name: str, value: Any) -> bytes:
        try:
            text = results.write(value)
        except results.NotJson as error:
            raise NonRetryable(
                f"the result of step {name!r} is not JSON: {error}",
                code=ErrorCode.RESULT_NOT_JSON,
            ) from None
        if len(text) > STEP_BYTES_MAX:
            raise NonRetryable(
                f"the result of step {name!r} has {len(text)} bytes, at most {STEP_BYTES_MAX} are "
                "kept: store the data elsewhere and return a reference",
                code=ErrorCode.STEP_TOO_LARGE,
            )
        return text

    def _store(self, name: str, text: bytes) -> Future[None]:
        size = len(name.encode()) + len(text) + ENTRY_BYTES
        with self._lock:
            if self._bytes is None:
                self._bytes = self._size()
            if self._bytes + size > MEMORY_BYTES_MAX:
                raise NonRetryable(
                    f"with step {name!r} this job would remember {self._bytes + size} bytes, at "
                    f"most {MEMORY_BYTES_MAX} are kept: store the data elsewhere and return "
                    "references", code=ErrorCode.STEP_TOO_LARGE,
                )
            self._bytes += size
        return self._say({"kind": "stepped", "name": name, "result": orjson.Fragment(text)})

    def _say(self, word: dict[str, Any]) -> Future[None]:
        if self._keep is None:
            raise RuntimeError("nothing here keeps what a handler says")
        return self._keep(word)

    def _size(self) -> int:
        """Bytes of what came with the job: only asked for when more is to be remembered."""
        return sum(
            len(name.encode()) + len(orjson.dumps(value)) + ENTRY_BYTES
            for name, (_, value) in self._memory.items()
        ) + sum(len(orjson.dumps(ends)) for ends in self._ends.values())

    # --- suspensions ---

    async def _sleep_async(
        self, name: str, for_ms: int, known: tuple[str, Any] | None
    ) -> None:
        if known is None:
            self._suspend({"kind": "sleep", "name": name, "for_ms": for_ms})

    async def _wait_async(
        self, waits: dict[str, Any], reader: Reader | None, known: tuple[str, Any] | None
    ) -> Any:
        return self._waited(waits, reader, known)

    def _waited(
        self, waits: dict[str, Any], reader: Reader | None, known: tuple[str, Any] | None
    ) -> Any:
        """What the signal has brought, when it is there."""
        if known is None:
            self._suspend(waits)
        name, (kind, value) = waits["name"], known or ("", None)
        if kind == "timed_out":
            raise SignalTimeout(f"signal {name!r} did not come in time")
        if kind != "signal":
            raise self._misuse(
                ErrorCode.NAME_USED_TWICE,
                f"the job remembers a {kind} by the name {name!r} of a wait: give the wait a name "
                "of its own",
            )
        if reader is None:
            return value
        try:
            return reader.read(value)
        except ValidationError as error:
            raise _unreadable(name, reader, error) from None

    def _suspend(self, waits: dict[str, Any]) -> None:
        raise self._hold(waits)

    def _hold(self, waits: dict[str, Any]) -> Suspended:
        """From here on the handler waits, and may do nothing else."""
        with self._lock:
            self._check_alone(waits["kind"], waits["name"], but_steps=False)
            self.suspended = Suspended(waits)
        return self.suspended

    # --- members ---

    def _ends_of(self, name: str, known: tuple[str, Any] | None) -> Ends | None:
        if known is None:
            return None
        if known[0] != gathering.KIND:
            raise self._misuse(
                ErrorCode.NAME_USED_TWICE,
                f"the job remembers a {known[0]} by the name {name!r} of a gather: give the gather "
                "a name of its own",
            )
        return Ends(name, known[1], self._ends.get(name, []))

    def _gather(self, asked: Gather, ends: Ends | None) -> list[CompletedJob]:
        if ends is not None:
            for _ in ends.read():
                pass
            return ends.found
        for _ in asked.prepare():
            pass
        if len(asked):
            suspended = self._hold(asked.waits())
            for told in [self._say(word) for word in asked.words()]:
                told.result()
            raise suspended
        return []

    async def _gather_async(self, asked: Gather, ends: Ends | None) -> list[CompletedJob]:
        """The same on a loop that others share."""
        if ends is not None:
            for _ in ends.read():
                await asyncio.sleep(0)
            return ends.found
        for _ in asked.prepare():
            await asyncio.sleep(0)
        if len(asked):
            suspended = self._hold(asked.waits())
            told = [asyncio.wrap_future(self._say(word)) for word in asked.words()]
            await asyncio.gather(*told)
            raise suspended
        return []


def _ms_of(duration: Duration, what: str) -> int:
    try:
        return round(seconds_of(duration, what) * 1000)
    except JobDefinitionError as error:
        raise ValueError(str(error)) from None


def _reader_of(name: str, model: Any) -> Reader | None:
    """How the value of a signal is read; None: as it is."""
    if model is None or model is Any or model is object:
        return None
    try:
        return reader_of(model)
    except Exception as error:  # noqa: BLE001  # pydantic and what a type does raise many kinds
        raise TypeError(
            f"wait {name!r}: {model!r} is no type that JSON can be read as ({error}); give a "
            "pydantic model, a dataclass or a type such as bool"
        ) from None


def _unreadable(name: str, reader: Reader, error: ValidationError) -> NonRetryable:
    """The value does not fit: another attempt would read the same one."""
    problem = first_problem(error)
    path = f"value.{problem.path}" if problem.path else "value"
    return NonRetryable(
        f"signal {name!r}: field {path!r}: {problem.message}; send what {reader.name} takes",
        code=ErrorCode.INVALID_SIGNAL,
    )


def _has_loop() -> bool:
    """Whether the caller may be awaited: in an `async def` handler, wherever it runs."""
    return asyncio._get_running_loop() is not None


def suspension_in(raised: BaseException) -> Suspended | None:
    """The suspension that an exception is, also alone in groups of a `TaskGroup`."""
    while isinstance(raised, BaseExceptionGroup) and len(raised.exceptions) == 1:
        raised = raised.exceptions[0]
    return raised if isinstance(raised, Suspended) else None


def as_json(waits: Mapping[str, Any]) -> dict[str, Any]:
    """The end of a suspended attempt."""
    return {"kind": "suspended", "waits": dict(waits)}
