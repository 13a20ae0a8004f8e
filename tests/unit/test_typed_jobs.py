"""`Job`: what is decorated stays what it is, payloads are checked, results come in their type."""

from __future__ import annotations

import asyncio
import copy
import functools
import importlib
import inspect
import pickle
import sys
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import pytest
from pydantic import BaseModel, Field, RootModel
from typing_extensions import TypedDict

import tidemill
from tidemill import Context, InvalidRequest, Job, JobHandle, ResultMismatch, TypedHandle, job
from tidemill.agents.worker.errors import JobDefinitionError
from tidemill.agents.worker.handlers import REGISTRY
from tidemill.completed import CompletedJob
from tidemill.requests import ClientError, encode
from tidemill.schemas.words import State
from tidemill.typed_jobs import Job as AnyJob
from tidemill.typed_jobs import _job_of

T = TypeVar("T")


class Day(BaseModel):
    day: date
    limit: int = 1


class LongDay(Day):
    hours: int = 25


class Other(BaseModel):
    limit: int = 1


class Refund(BaseModel):
    kind: Literal["refund"] = "refund"


class Sale(BaseModel):
    kind: Literal["sale"] = "sale"
    n: int = 0


class Vague(BaseModel):
    n: int = 0


class AlsoVague(BaseModel):
    n: int = 0


class Box(BaseModel, Generic[T]):
    content: T


class Ages(RootModel[dict[str, int]]):
    pass


class Seen(TypedDict):
    n: int


@dataclass
class Point:
    x: int


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """Handlers of these tests are forgotten after each."""
    known = dict(REGISTRY._handlers)
    yield
    REGISTRY._handlers.clear()
    REGISTRY._handlers.update(known)


# --- what was decorated stays what it was ---------------------------------------------------------


async def coroutine(payload: Day, ctx: Context) -> int:
    """Says what it does."""
    return payload.limit


def plain(payload: Day, limit: int = 3) -> int:
    """Says what it does."""
    return payload.limit + limit


class Thing:
    def __call__(self, payload: Day) -> int:
        return payload.limit


class AsyncThing:
    async def __call__(self, payload: Day) -> int:
        return payload.limit


class Things:
    def method(self, payload: Day) -> int:
        return payload.limit

    @staticmethod
    def static(payload: Day) -> int:
        return payload.limit


def first_given(number: int, payload: Day) -> int:
    return number + payload.limit


async def first_given_async(number: int, payload: Day) -> int:
    return number + payload.limit


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def wrapped_async(function: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> T:
        return await function(*args, **kwargs)

    return wrapper


KINDS: list[tuple[str, Any, bool]] = [
    ("coroutine", coroutine, True),
    ("plain", plain, False),
    ("lambda", lambda payload: payload.limit, False),
    ("partial", functools.partial(first_given, 1), False),
    ("partial of a coroutine", functools.partial(first_given_async, 1), True),
    ("partial of a partial", functools.partial(functools.partial(first_given_async), 1), True),
    ("wrapped", wrapped(plain), False),
    ("wrapped coroutine", wrapped_async(coroutine), True),
    # Its wrapper is a `def`: Python says the same of the bare function.
    ("coroutine in a def", wrapped(coroutine), False),
    ("object", Thing(), False),
    ("coroutine object", AsyncThing(), True),
    ("partial of an object", functools.partial(AsyncThing()), True),
    ("method", Things().method, False),
    ("static method", Things.static, False),
    ("staticmethod object", staticmethod(plain), False),
]


@pytest.fixture(params=KINDS, ids=[name for name, _, _ in KINDS])
def kind(request: pytest.FixtureRequest) -> tuple[Any, Any, bool]:
    _, target, is_async = request.param
    return job("kind.of.callable")(target), target, is_async


def test_it_is_called_as_before(kind: tuple[Any, Any, bool]) -> None:
    decorated, target, _ = kind
    parameters = inspect.signature(target).parameters
    given: list[Any] = [DAY, None] if "ctx" in parameters else [DAY]
    expected, got = target(*given), decorated(*given)
    if inspect.iscoroutine(expected):
        assert asyncio.run(got) == asyncio.run(expected)
    else:
        assert got == expected


def test_coroutine_functions_are_seen_as_such(kind: tuple[Any, Any, bool]) -> None:
    decorated, _, is_async = kind
    assert inspect.iscoroutinefunction(decorated) is is_async
    assert asyncio.iscoroutinefunction(decorated) is is_async
    assert not inspect.isgeneratorfunction(decorated)
    assert not inspect.isasyncgenfunction(decorated)
    assert callable(decorated)


def test_signature_name_and_doc_are_kept(kind: tuple[Any, Any, bool]) -> None:
    decorated, target, _ = kind
    assert inspect.signature(decorated) == inspect.signature(target)
    if hasattr(target, "__name__"):
        assert decorated.__name__ == target.__name__
        assert decorated.__doc__ == target.__doc__
        assert decorated.__qualname__ == target.__qualname__
    assert decorated.__module__ == __name__
    assert isinstance(decorated, AnyJob)
    assert decorated.type == "kind.of.callable"
    assert "kind.of.callable" in repr(decorated)


@pytest.mark.parametrize("target", [coroutine, plain])
def test_tools_that_look_at_functions_see_one(target: Any) -> None:
    decorated = job("looked.at")(target)
    assert typing.get_type_hints(decorated) == typing.get_type_hints(target)
    assert inspect.getsource(decorated) == inspect.getsource(target)
    assert inspect.unwrap(decorated) is target
    assert inspect.signature(functools.wraps(decorated)(lambda *given: None)) == (
        inspect.signature(target)
    )


def test_attributes_of_the_function_are_there_and_hide_nothing() -> None:
    def handle(payload: Day) -> int:
        return 1

    handle.weight = 7  # type: ignore[attr-defined]
    handle.enqueue = "mine"  # type: ignore[attr-defined]
    decorated: Any = job("with.attributes")(handle)
    assert decorated.weight == 7
    assert inspect.iscoroutinefunction(decorated.enqueue)
    decorated.later = 1
    assert decorated.later == 1


def test_a_function_may_be_the_handler_of_two_types() -> None:
    inner: Any = job("type.one")(plain)
    outer: Any = job("type.two")(inner)
    assert (inner.type, outer.type) == ("type.one", "type.two")
    assert outer(Day(day=date(2026, 1, 1))) == 4
    assert not inspect.iscoroutinefunction(outer)
    handler = REGISTRY.get("type.two")
    assert handler is not None
    assert handler.runs_as == "thread"
    twice: Any = job("type.four")(job("type.three")(coroutine))
    assert inspect.iscoroutinefunction(twice)
    assert asyncio.run(twice(DAY, None)) == 1


async def makes_many(payload: Day) -> typing.AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("target", [makes_many, functools.partial(makes_many)])
def test_generators_are_refused_where_they_are_decorated(target: Any) -> None:
    with pytest.raises(JobDefinitionError, match="a generator cannot be a handler"):
        job("generator")(target)


# --- pickling -------------------------------------------------------------------------------------


@job("test.pickled")
async def pickled(payload: Day) -> Day:
    return payload


renamed = job("test.renamed")(plain)  # the module's `plain` is the bare function


class Held:
    @job("test.held")
    @staticmethod
    def inner(payload: Day) -> int:
        return 1


@pytest.mark.parametrize("decorated", [pickled, renamed, Held.inner])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_job_is_pickled_by_its_name(decorated: Any, protocol: int) -> None:
    if protocol < 2 and decorated is Held.inner:
        protocol = 2  # names with dots came with the later ones
    assert pickle.loads(pickle.dumps(decorated, protocol)) is decorated
    assert copy.copy(decorated) is decorated
    assert copy.deepcopy({"a": decorated})["a"] is decorated


def test_a_job_that_is_not_there_is_said() -> None:
    with pytest.raises(ClientError, match=r"defines no job of the type 'no\.such'"):
        _job_of(__name__, "no.such")


def test_a_module_that_is_loaded_again_has_new_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    text = ("from tidemill import job\nfrom pydantic import BaseModel\n"
            "class Item(BaseModel):\n    n: int\n"
            "@job('loaded.again')\ndef again(payload: Item) -> {kind}:\n    return payload.n\n")
    file = tmp_path / "loaded_again.py"
    file.write_text(text.format(kind="int"))
    module = importlib.import_module("loaded_again")
    try:
        before, item = module.again, module.Item
        pickle_before = pickle.dumps(before)
        file.write_text(text.format(kind="str") + "# longer than before\n")
        importlib.invalidate_caches()
        importlib.reload(module)
        assert module.again is not before
        # What another process, or an older pickle, means by the name is what the module has now.
        assert pickle.loads(pickle_before) is module.again
        assert pickle.loads(pickle.dumps(before)) is module.again
        # Either takes what it was defined with.
        assert before.request(item(n=1), user_id="u").payload == item(n=1)
        with pytest.raises(InvalidRequest, match="field 'payload': a Item was given"):
            module.again.request(item(n=1), user_id="u")
    finally:
        sys.modules.pop("loaded_again")


# --- payloads -------------------------------------------------------------------------------------


def annotated_with(annotation: Any) -> Any:
    def handle(payload: Any) -> None: ...

    handle.__annotations__["payload"] = annotation
    return job("payload.of")(handle)


Either = typing.Annotated[Refund | Sale, Field(discriminator="kind")]
DAY = Day(day=date(2026, 1, 1))


@pytest.mark.parametrize(
    ("annotation", "payload"),
    [
        (Day, DAY), (Day, {"day": "2026-01-01"}), (Day | None, DAY), (Day, LongDay(day=DAY.day)),
        (Either, Sale(n=1)), (Refund | Sale, Refund()), (Day | dict, DAY), (Day | dict, {"a": 1}),
        (Point, Point(1)), (Point, {"x": 1}), (Seen, {"n": 1}), (Ages, Ages({"a": 1})),
        (Box[int], Box[int](content=1)), (Box[int], Box(content=1)), (dict, {"a": [1]}),
        (dict[str, int], {"n": 1}), (Any, DAY), (Mapping[str, Any], {"n": 1}),
        (Vague | AlsoVague, Vague()),
    ],
    ids=str,
)
def test_a_payload_that_fits_is_taken(annotation: Any, payload: Any) -> None:
    request = annotated_with(annotation).request(payload, user_id="u")
    assert request.type == "payload.of"
    assert encode(request, "j")


@pytest.mark.parametrize(
    ("annotation", "payload", "field", "words"),
    [
        (Day, Other(), "payload", "a Other was given"),
        (Day, {"limit": 1}, "payload.day", "Field required"),
        (Day, {"day": "soon"}, "payload.day", "valid date"),
        (Day, {}, "payload.day", "Field required"), (Day, None, "payload.day", "Field required"),
        (Day, Point(1), "payload", "a Point was given"), (Point, DAY, "payload", "a Day was given"),
        (Point, {"x": "a"}, "payload.x", "valid integer"), (Seen, {}, "payload.n", "required"),
        (Seen, {"n": "a"}, "payload.n", "valid integer"), (Either, DAY, "payload", "a Day was"),
        (Either, {"kind": "gift"}, "payload", "does not match"),
        (Ages, {"a": "old"}, "payload.a", "valid integer"),
        (Box[int], Box(content="x"), "payload.content", "valid integer"),
        (Box[int], Box[str](content="x"), "payload.content", "valid integer"),
        (Vague | AlsoVague, AlsoVague(), "payload", "would be read as a Vague"),
        (Day, "2026-01-01", "payload", "dict"), (Day, [1], "payload", "dict"),
        (dict, [1], "payload", "dict"), (dict, {"a": 1j}, "payload.a", "is not JSON"),
        (Day, {"day": float("nan")}, "payload", "NaN"),
    ],
    ids=str,
)
def test_a_payload_of_the_wrong_type_is_refused_with_its_field(
    annotation: Any, payload: Any, field: str, words: str
) -> None:
    decorated = annotated_with(annotation)
    with pytest.raises(InvalidRequest) as caught:
        encode(decorated.request(payload, user_id="u"), "j")
    assert f"field '{field}" in str(caught.value), caught.value
    assert words in str(caught.value)


def test_what_may_be_said_of_a_job_is_said() -> None:
    decorated = annotated_with(Day)
    instant = datetime(2030, 1, 1, tzinfo=UTC)
    request = decorated.request(
        DAY, user_id="u", job_id="j", queue="q", priority="low", run_at=instant, tags=["a"],
        expires_at=instant, unique_key="k", max_attempts=2, timeout_seconds=3.0, source="s",
        batch_id="b", parent_job_id="p",
    )
    assert b'"unique_key":"k"' in encode(request, "j")
    with pytest.raises(TypeError, match="'prio' cannot be said of a job; known are user_id"):
        decorated.request(DAY, user_id="u", prio="low")
    with pytest.raises(TypeError, match="user_id"):
        decorated.request(DAY)


def test_what_the_engine_would_refuse_is_refused_before_it_travels() -> None:
    decorated = annotated_with(Day)
    with pytest.raises(InvalidRequest, match="field 'priority'"):
        decorated.enqueue_sync(DAY, user_id="u", priority="urgent")
    with pytest.raises(InvalidRequest, match="field 'run_at'"):
        asyncio.run(decorated.enqueue(DAY, user_id="u", run_at=datetime(2026, 1, 1)))


# --- ends -----------------------------------------------------------------------------------------


def ended(result: Any, status: State = State.SUCCEEDED) -> CompletedJob:
    instant = "2026-01-01T00:00:00.000Z"
    return CompletedJob(
        job_id="j", user_id="u", type="t", queue="default", status=status, reason=None,
        result=result, error=None, attempts=1, requested_at=instant, started_at=instant,
        finished_at=instant, wait_ms=0, run_ms=0, run=1, sequence=3, schema_version=1,
    )


def returning(annotation: Any) -> AnyJob[Any, Any]:
    def handle(payload: Day) -> Any: ...

    handle.__annotations__["return"] = annotation
    return typing.cast(AnyJob[Any, Any], job("returns")(handle))


@pytest.mark.parametrize(
    ("annotation", "told", "expected"),
    [
        (Day, {"day": "2026-01-01", "limit": 1}, DAY), ("Day", {"day": "2026-01-01"}, DAY),
        (Point, {"x": 1}, Point(1)), (list[Point], [{"x": 1}], [Point(1)]), (int, 5, 5),
        (dict, {"a": 1}, {"a": 1}), (dict[int, date], {"1": "2026-01-01"}, {1: date(2026, 1, 1)}),
        (Decimal, "1.50", Decimal("1.50")), (tuple[int, str], [1, "a"], (1, "a")),
        (set[int], [1, 2], {1, 2}), (Day | None, None, None), (Either, {"kind": "sale"}, Sale()),
        (None, None, None), (Any, [1], [1]), (inspect.Parameter.empty, [1], [1]),
        ("NotThere", [1], [1]), (BaseModel, {"a": 1}, {"a": 1}), (Seen, {"n": 1}, {"n": 1}),
        (Awaitable[Day], {"day": "2026-01-01"}, DAY),
        (Box[int], {"content": 1}, Box[int](content=1)),
    ],
    ids=str,
)
def test_a_result_comes_back_in_its_type(annotation: Any, told: Any, expected: Any) -> None:
    end = returning(annotation).read_end(ended(told))
    assert end.result == expected
    assert type(end.result) is type(expected)
    assert isinstance(end, tidemill.CompletedJob)
    assert end.status == "succeeded"


@pytest.mark.parametrize("status", [s for s in State if s.value in (
    "failed", "cancelled", "skipped", "expired")])
def test_other_ends_have_no_result_to_read(status: State) -> None:
    end = ended(None, status)
    assert returning(Day).read_end(end) is end


@pytest.mark.parametrize(
    ("annotation", "told", "field"),
    [(Day, {"limit": 1}, "result.day"), (int, "many", "result"), (Day, None, "result"),
     (list[Point], [{"x": 1}, {}], "result.1.x")],
    ids=str,
)
def test_a_result_of_another_type_is_said_and_not_lost(
    annotation: Any, told: Any, field: str
) -> None:
    with pytest.raises(ResultMismatch, match=f"succeeded, and its result .*field '{field}'") as no:
        returning(annotation).read_end(ended(told))
    assert no.value.completed.result == told
    assert "mend the return annotation" in str(no.value)


def test_names_around_a_function_in_a_function_are_known() -> None:
    class Inner(BaseModel):
        n: int

    @job("inner")
    def handle(payload: Day) -> Inner:
        return Inner(n=1)

    read = typing.cast(AnyJob[Day, Inner], handle).read_end(ended({"n": 1}))
    assert read.result == Inner(n=1)


# --- handles --------------------------------------------------------------------------------------


def test_a_handle_without_a_client_says_how_to_wait() -> None:
    handle = JobHandle(job_id="j", user_id="u", type="t", topic="x", enqueued_at=1)
    with pytest.raises(ClientError, match=r"knows no client.*client\.wait\(handle\)"):
        handle.result_sync(timeout=0.01)
    with pytest.raises(ClientError, match="knows no client"):
        asyncio.run(handle.result(timeout=0.01))


def test_a_handle_keeps_no_client_alive() -> None:
    client = tidemill.Client("127.0.0.1:1")
    core = client._core
    handle = JobHandle("j", "u", "t", "x", 1).bound(core.binding)
    del core, client
    with pytest.raises(ClientError, match=r"is gone.*client\.wait\(handle\)"):
        handle.result_sync(timeout=0.01)


def test_handles_are_values() -> None:
    client = tidemill.Client("127.0.0.1:1")
    bare = JobHandle("j", "u", "t", "x", 1, 2, 3)
    bound = JobHandle("j", "u", "t", "x", 1, 2, 3).bound(client._core.binding)
    assert bound == bare
    assert hash(bound) == hash(bare)
    assert asdict(bound) == asdict(bare)
    assert pickle.loads(pickle.dumps(bound)) == bare
    typed = TypedHandle.of(bound, typing.cast(AnyJob[Any, Any], pickled), keeps_client=True)
    assert asdict(typed) == asdict(bare)
    assert "job_id='j'" in repr(typed)
    back = pickle.loads(pickle.dumps(typed))
    assert back == typed
    assert back.read(ended({"day": "2026-01-01"})).result == DAY
    assert copy.copy(typed) == typed
    client.close()


def test_a_typed_handle_is_a_handle() -> None:
    handle: JobHandle = TypedHandle.of(
        JobHandle("j", "u", "t", "x", 1), typing.cast(AnyJob[Any, Any], pickled), keeps_client=False
    )
    assert handle.job_id == "j"
    typed: Job[Day, Day] = pickled
    assert isinstance(typed, Job)
