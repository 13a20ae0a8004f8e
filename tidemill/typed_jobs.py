"""`Job`: a handler as the rest of a program sees it. Call it, or ask for it to be run as a job.

Owns typed calls: which payload fits the handler, and the type in which its result comes back; and
that a decorated function stays what it was for `inspect`, `asyncio` and `pickle`. Refuses to run
handlers (a worker does) and to know how requests travel (`tidemill.client`, loaded when first
used: a module of handlers needs no Kafka client).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from datetime import datetime
from types import CodeType
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    Required,
    TypedDict,
    TypeVar,
    Unpack,
)

import orjson
from pydantic import BaseModel, ValidationError

from tidemill.agents.worker.annotations import members_of
from tidemill.agents.worker.handlers import REGISTRY, Handler
from tidemill.agents.worker.results import told_type
from tidemill.agents.worker.signature import base_of, is_coroutine, place_of
from tidemill.requests import ClientError, InvalidRequest, Request, encode
from tidemill.schemas.first_problem import first_input, first_problem
from tidemill.schemas.portable import Reader

if TYPE_CHECKING:
    from tidemill.client import AsyncClient, Client
    from tidemill.completed import CompletedJob
    from tidemill.handles import TypedHandle

P = TypeVar("P", contravariant=True)
R = TypeVar("R", covariant=True)

SHOWN_LENGTH_MAX: Final = 80  # characters of a wrong value in a message
_UNREAD: Final = object()


class EnqueueOptions(TypedDict, total=False):
    """What may be said of a job beside its payload; each as in `Request`."""

    user_id: Required[str]
    job_id: str | None
    queue: str | None
    priority: Literal["high", "medium", "low"] | None
    run_at: datetime | None
    expires_at: datetime | None
    unique_key: str | None
    max_attempts: int | None
    timeout_seconds: float | None
    source: str | None
    tags: Sequence[str]
    batch_id: str | None
    parent_job_id: str | None


class Job(Generic[P, R]):
    """A job type with its handler: `P` is what its payload is, `R` what the handler returns.

    `@job` makes it. It is called as the function was. `enqueue` and its siblings ask for a job;
    in a handler, too, they send at once and to nobody's child: see `Context.enqueue` for jobs
    that are born only when this one succeeds.
    """

    #: The job type.
    type: str

    __wrapped__: Callable[..., Any]
    __name__: str

    def __init__(self, handler: Handler, function: Callable[..., Any], names: Mapping[str, Any]):
        base = base_of(function)
        self.__dict__.update(_attributes_of(function))
        named = function if hasattr(function, "__name__") else base
        for name in ("__module__", "__name__", "__qualname__", "__doc__", "__annotations__"):
            setattr(self, name, getattr(named, name, None))
        self.__wrapped__ = function
        self.type = handler.type
        self._handler = handler
        self._result_reader: Any = _UNREAD
        if "<locals>" in getattr(base, "__qualname__", ""):
            # The names around the function are here only now.
            self._result_reader = _result_reader(function, names)
        if is_coroutine(function):
            _mark_as_coroutine(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<job {self.type!r}: {place_of(self.__wrapped__)}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        """By name, as functions are pickled; by its type where the name is another's."""
        name = getattr(self, "__qualname__", "")
        if _found(self.__module__, name) is self:
            return name
        return _job_of, (self.__module__, self.type)

    def __copy__(self) -> Job[P, R]:
        return self

    def __deepcopy__(self, memo: object) -> Job[P, R]:
        return self

    # -- asking for jobs ---------------------------------------------------------------------------

    def request(self, payload: P, **options: Unpack[EnqueueOptions]) -> Request:
        """A request for `Client.enqueue_many`, its payload checked.

        Raises InvalidRequest that names the field for a payload that the handler does not take.
        """
        unknown = options.keys() - EnqueueOptions.__annotations__.keys()
        if unknown:
            raise TypeError(
                f"{self.type}: {min(unknown)!r} cannot be said of a job; known are "
                f"{', '.join(EnqueueOptions.__annotations__)}"
            )
        request = Request(type=self.type, payload=payload, **options)  # type: ignore[arg-type]
        self._check(request)
        return request

    async def enqueue(
        self,
        payload: P,
        *,
        client: Client | AsyncClient | None = None,
        **options: Unpack[EnqueueOptions],
    ) -> TypedHandle[R]:
        """Ask for one job; returns once Kafka has it on all in-sync replicas.

        `client`: None: the default client of this process. Raises InvalidRequest, EnqueueFailed.
        """
        from tidemill.client import enqueue_on_loop
        from tidemill.handles import TypedHandle
        from tidemill.shared_client import default_client

        request = self.request(payload, **options)
        handle = await enqueue_on_loop(default_client() if client is None else client, request)
        return TypedHandle.of(handle, self, keeps_client=client is not None)

    def enqueue_sync(
        self,
        payload: P,
        *,
        client: Client | AsyncClient | None = None,
        **options: Unpack[EnqueueOptions],
    ) -> TypedHandle[R]:
        """As `enqueue`, for programs without an event loop; a loop would stand still meanwhile."""
        from tidemill.client import enqueue_and_wait
        from tidemill.handles import TypedHandle
        from tidemill.shared_client import default_client

        request = self.request(payload, **options)
        handle = enqueue_and_wait(default_client() if client is None else client, request)
        return TypedHandle.of(handle, self, keeps_client=client is not None)

    # -- payload and result ------------------------------------------------------------------------

    def _check(self, request: Request) -> None:
        """Refuse what the handler would not read as what it was."""
        handler, payload = self._handler, request.payload
        reader = handler.reader
        if reader is None or type(payload) is handler.model:
            return  # `encode` checks that its own class reads it back
        is_model = isinstance(payload, BaseModel) or is_dataclass(payload)
        kinds = [_class_of(member) for member in members_of(handler.model)]
        if is_model and not any(isinstance(payload, kind) for kind in kinds):
            raise InvalidRequest(
                f"field 'payload': a {type(payload).__name__} was given, and the job "
                f"{self.type!r} takes {reader.name} (given: {_shown(payload)})"
            )
        sent = orjson.loads(encode(request, request.job_id or "-"))["payload"]
        try:
            back = reader.read(sent)
        except ValidationError as error:
            field, problem, given = _first_problem("payload", error)
            raise InvalidRequest(
                f"field {field!r}: {problem}; the job {self.type!r} takes {reader.name} "
                f"(given: {given})"
            ) from None
        if is_model and type(payload) in kinds and not isinstance(back, type(payload)):
            raise InvalidRequest(
                f"field 'payload': a {type(payload).__name__} would be read as a "
                f"{type(back).__name__} by the job {self.type!r}; give the members of its union a "
                "field that tells them apart"
            )

    def read_end(self, end: CompletedJob) -> CompletedJob[R | None]:
        """An end of this type's with the result as the handler's return annotation reads it.

        Raises ResultMismatch; the end is in it.
        """
        from tidemill.completed import ResultMismatch

        if end.status != "succeeded":
            return end
        if self._result_reader is _UNREAD:
            self._result_reader = _result_reader(self.__wrapped__, {})
        reader: Reader | None = self._result_reader
        if reader is None:
            return end
        try:
            return end.model_copy(update={"result": reader.read(end.result)})
        except ValidationError as error:
            field, problem, given = _first_problem("result", error)
            raise ResultMismatch(
                f"job {end.job_id} of {end.user_id} succeeded, and its result is not the "
                f"{reader.name} that {place_of(self.__wrapped__)} says: field {field!r}: "
                f"{problem} (it is: {given}); mend the return annotation, or "
                "read `completed.result` of this error",
                end,
            ) from None


def _class_of(member: Any) -> Any:
    """What a value of this member of a union is an instance of."""
    metadata = getattr(member, "__pydantic_generic_metadata__", None) or {}
    origin = metadata.get("origin") or getattr(member, "__origin__", None) or member
    if isinstance(origin, type) and not hasattr(origin, "__required_keys__"):
        return origin
    return dict  # a TypedDict


def _first_problem(root: str, error: ValidationError) -> tuple[str, str, str]:
    """The field, what is wrong with it, and what was given."""
    first = first_problem(error)
    field = f"{root}.{first.path}" if first.path else root
    return field, first.message, _shown(first_input(error))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_LENGTH_MAX else f"{text[:SHOWN_LENGTH_MAX - 3]}..."


def _result_reader(function: Callable[..., Any], names: Mapping[str, Any]) -> Reader | None:
    told = told_type(base_of(function), names)
    if told is None or told is BaseModel:
        return None
    try:
        return Reader(told)
    except Exception:  # noqa: BLE001  # a type that only tells what a value can do
        return None


# -- seen as the function that it was --------------------------------------------------------------


async def _stub(*args: Any, **kwargs: Any) -> None:
    """Its code says: a coroutine function that takes anything."""


def _mark_as_coroutine(target: Job[Any, Any], function: Callable[..., Any]) -> None:
    """Python asks the code's flags of whatever looks like a function; 3.12 has a mark as well."""
    plain: Any = function if inspect.iscoroutinefunction(function) else _stub
    plain = plain if isinstance(getattr(plain, "__code__", None), CodeType) else _stub
    attributes = vars(target)
    for name in ("__code__", "__defaults__", "__kwdefaults__"):
        attributes[name] = getattr(plain, name)
    mark = getattr(inspect, "markcoroutinefunction", None)
    if mark is not None:
        mark(target)


def _attributes_of(function: Callable[..., Any]) -> dict[str, Any]:
    """What a program has put on its function, less what a `Job` has itself."""
    given = vars(function) if hasattr(function, "__dict__") else {}
    is_object = not (inspect.isroutine(function) or isinstance(function, Job))
    return {} if is_object else {
        name: value for name, value in given.items()
        if not hasattr(Job, name) and not name.startswith("_")
    }


def _found(module: str, name: str) -> object:
    try:
        place: Any = importlib.import_module(module)
        for part in name.split("."):
            place = getattr(place, part)
    except (ImportError, AttributeError, ValueError):
        return None
    return place


def _job_of(module: str, type_name: str) -> Job[Any, Any]:
    """The job of that type once its module is loaded."""
    importlib.import_module(module)
    handler = REGISTRY.get(type_name)
    found = None if handler is None else JOBS.get(handler)
    if found is None:
        raise ClientError(f"the module {module} defines no job of the type {type_name!r}")
    return found


class _Jobs:
    """The job of each handler."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job[Any, Any]] = {}

    def add(self, job: Job[Any, Any]) -> None:
        self._jobs[job.type] = job

    def get(self, handler: Handler) -> Job[Any, Any] | None:
        job = self._jobs.get(handler.type)
        return job if job is not None and job._handler is handler else None


JOBS: Final = _Jobs()
