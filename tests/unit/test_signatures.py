"""Signatures: what can be understood is, and what cannot is refused at import with the reason."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import typing
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NewType, Optional, TypeVar

import pytest
from pydantic import BaseModel, Field, RootModel
from typing_extensions import TypedDict

from tidemill.agents.worker.attempts import Attempt, Pack, QueueState
from tidemill.agents.worker.context import Context
from tidemill.agents.worker.errors import JobDefinitionError
from tidemill.agents.worker.handlers import Handler, build_handler
from tidemill.agents.worker.lanes import run_blocking

if TYPE_CHECKING:
    import tidemill as mill
    from tidemill import Context as Unseen
    from tidemill.context import Context as Context2  # noqa: F401

T = TypeVar("T")
UNION = typing.Union  # as people still write it


class Order(BaseModel, frozen=True):
    n: int


class Refund(BaseModel):
    kind: Literal["refund"] = "refund"


class Sale(BaseModel):
    kind: Literal["sale"] = "sale"
    n: int = 0


class Box(BaseModel, Generic[T]):
    content: T


class Ages(RootModel[dict[str, int]]):
    pass


class Seen(TypedDict):
    n: int


@dataclasses.dataclass
class Point:
    n: int


OrderLike = NewType("OrderLike", Order)


def attempt_of(handler: Handler, payload: dict[str, Any]) -> Attempt:
    job = {"job_id": "j", "user_id": "u", "type": "t", "run": 1, "attempt": 1, "max_attempts": 3,
           "epoch": 1, "payload": payload}
    return Attempt(Pack(QueueState("q"), 0, 1, 0.0, lambda: None), job, handler)


def run(handler: Handler, payload: dict[str, Any] | None = None) -> Any:
    """What a call of the worker gives; fails with the words of the attempt's end."""
    attempt = attempt_of(handler, {"n": 1} if payload is None else payload)
    if handler.runs_as == "async":
        return asyncio.run(handler.function(*handler.arguments(attempt.job["payload"], attempt)))
    end = run_blocking(attempt)
    assert end["kind"] == "succeeded", end
    return end["result"]


def kinds(payload: Any, ctx: Any) -> tuple[str, str]:
    return type(payload).__name__, type(ctx).__name__


# --- where the context may stand and how it may be named ------------------------------------------


def second(payload: Order, ctx): return kinds(payload, ctx)  # type: ignore[no-untyped-def]
def annotated(payload: Order, c: Context) -> Any: return kinds(payload, c)
def optional(payload: Order, context: Optional[Context] = None) -> Any:  # noqa: UP045
    return kinds(payload, context)
def union(payload: Order, c: Context | None = None) -> Any: return kinds(payload, c)
def old_union(payload: Order, c: typing.Union[Context, None] = None) -> Any:  # noqa: UP007
    return kinds(payload, c)
def noted(payload: Order, c: Annotated[Context, "note"]) -> Any: return kinds(payload, c)
def noted_optional(payload: Order, c: Annotated[Context | None, 1] = None) -> Any:
    return kinds(payload, c)
def keyword(payload: Order, *, ctx: Context) -> Any: return kinds(payload, ctx)
def keyword_optional(payload: Order, *, context: Context | None = None) -> Any:
    return kinds(payload, context)
def both_keywords(*, payload: Order, ctx: Context) -> Any: return kinds(payload, ctx)
def turned(ctx: Context, payload: Order) -> Any: return kinds(payload, ctx)
def turned_positional(ctx: Context, payload: Order, /) -> Any: return kinds(payload, ctx)
def third(payload: Order, retries: int = 3, ctx: Context | None = None) -> Any:
    return kinds(payload, ctx)
def last(payload: Order, *more: int, ctx: Context, **rest: int) -> Any: return kinds(payload, ctx)
def bare_name(payload: Order, context=None): return kinds(payload, context)  # type: ignore[no-untyped-def]
def positional(payload: Order, ctx: Context, /) -> Any: return kinds(payload, ctx)
def unseen(payload: Order, c: mill.Context) -> Any: return kinds(payload, c)
def unseen_optional(payload: Order, c: Optional[mill.Context] = None) -> Any:  # noqa: UP045
    return kinds(payload, c)
def any_ctx(payload: Order, ctx: Any = None) -> Any: return kinds(payload, ctx)
def other_ctx(payload: Order, ctx: Unseen | None = None) -> Any: return kinds(payload, ctx)


WITH_CONTEXT = [
    second, annotated, optional, union, old_union, noted, noted_optional, keyword,
    keyword_optional, both_keywords, turned, turned_positional, third, last, bare_name, positional,
    unseen, unseen_optional, any_ctx, other_ctx,
]


@pytest.mark.parametrize("function", WITH_CONTEXT, ids=lambda function: str(function.__name__))
def test_the_context_is_passed(function: Callable[..., Any]) -> None:
    handler = build_handler("t", function)
    assert handler.takes_context
    assert run(handler) == ("Order", "Context")


@pytest.mark.parametrize("function", WITH_CONTEXT, ids=lambda function: str(function.__name__))
def test_the_context_is_passed_through_decorators(function: Callable[..., Any]) -> None:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    assert run(build_handler("t", wrapper)) == ("Order", "Context")
    assert run(build_handler("t", functools.lru_cache(wrapper))) == ("Order", "Context")


def alone(payload: Order) -> Any: return kinds(payload, None)
def defaulted(payload: Order | None = None) -> Any: return kinds(payload, None)
def own_context(payload: Order, context: Mapping[str, int] | None = None) -> Any:
    return kinds(payload, context)
def own_default(payload: Order, retries: int = 3, **rest: Any) -> Any: return kinds(payload, None)
def named_ctx(ctx: Order) -> Any: return kinds(ctx, None)


@pytest.mark.parametrize("function", [alone, defaulted, own_context, own_default, named_ctx])
def test_no_context_is_passed_to_who_wants_none(function: Callable[..., Any]) -> None:
    handler = build_handler("t", function)
    assert not handler.takes_context
    assert run(handler) == ("Order", "NoneType")


# --- what payloads may be -------------------------------------------------------------------------


def annotated_with(annotation: Any) -> Callable[..., Any]:
    def handle(payload: Any) -> str:
        return type(payload).__name__

    handle.__annotations__["payload"] = annotation
    return handle


Either = Annotated[Refund | Sale, Field(discriminator="kind")]


@pytest.mark.parametrize(
    ("annotation", "payload", "expected"),
    [
        (Order, {"n": 1}, "Order"), ("Order", {"n": 1}, "Order"), (Order | None, {"n": 1}, "Order"),
        ("Optional[Order]", {"n": 1}, "Order"), (Annotated[Order, "x"], {"n": 1}, "Order"),
        (Either, {"kind": "sale"}, "Sale"), (Refund | Sale, {"kind": "refund"}, "Refund"),
        (Box[int], {"content": 1}, "Box[int]"), (Ages, {"a": 1}, "Ages"), (Seen, {"n": 1}, "dict"),
        (Point, {"n": 1}, "Point"), ("Point | None", {"n": 1}, "Point"), (Any, {"n": 1}, "dict"),
        (object, {"n": 1}, "dict"), (dict, {"n": 1}, "dict"), (dict[str, int], {"n": 1}, "dict"),
        (Mapping[str, Any], {"n": 1}, "dict"), (typing.Mapping, {"n": 1}, "dict"),
        (dict[str, Any] | None, {"n": 1}, "dict"), (OrderLike, {"n": 1}, "Order"),
        ("dict[str, 'Any']", {"n": 1}, "dict"),
        (RootModel[list[int]], {"root": [1]}, "RootModel[list[int]]"),
    ],
    ids=str,
)
def test_payloads_are_read_by_their_annotation(
    annotation: Any, payload: dict[str, Any], expected: str
) -> None:
    handler = build_handler("t", annotated_with(annotation))
    assert run(handler, payload) == expected
    assert handler.definition().type == "t"


def test_a_model_whose_fields_are_defined_later_is_read() -> None:
    handler = build_handler("t", lambda payload: payload.later.n, local_names={})
    assert run(build_handler("t", reads_late), {"later": {"n": 5}}) == 5
    assert handler.model is None


class Early(BaseModel):
    later: Late


def reads_late(payload: Early) -> int:
    return payload.later.n


EARLY = build_handler("t", reads_late)


class Late(BaseModel):
    n: int


# --- what may be decorated ------------------------------------------------------------------------


class Things:
    @staticmethod
    def static(payload: Order, ctx: Context) -> Any: return kinds(payload, ctx)

    def method(self, payload: Order, ctx: Context) -> Any: return kinds(payload, ctx)

    @classmethod
    def of_class(cls, payload: Order, ctx: Context) -> Any: return kinds(payload, ctx)

    def __call__(self, payload: Order, ctx: Context) -> Any: return kinds(payload, ctx)


class AsyncThing:
    async def __call__(self, payload: Order, ctx: Context) -> Any: return kinds(payload, ctx)


async def coroutine(payload: Order, ctx: Context) -> Any:
    await asyncio.sleep(0)
    return kinds(payload, ctx)


def first_given(number: int, payload: Order, ctx: Context) -> Any: return kinds(payload, ctx)


def sync_around(function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("target", "runs_as"),
    [
        (Things.static, "thread"), (staticmethod(annotated), "thread"), (Things().method, "thread"),
        (Things.of_class, "thread"), (Things(), "thread"), (AsyncThing(), "async"),
        (functools.partial(first_given, 1), "thread"), (functools.partial(annotated), "thread"),
        (functools.partial(coroutine), "async"), (coroutine, "async"),
        (functools.partial(functools.partial(first_given, 1)), "thread"),
        (sync_around(coroutine), "thread"), (functools.partial(AsyncThing()), "async"),
        (lambda payload, ctx: ("Order", type(ctx).__name__), "thread"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_callables_of_every_kind_are_handlers(target: Any, runs_as: str) -> None:
    handler = build_handler("t", target)
    assert handler.runs_as == runs_as
    assert run(handler) == ("Order", "Context")
    # A worker finds handlers by the module in which they stand.
    assert handler.function.__module__ == __name__


# --- what cannot be understood --------------------------------------------------------------------


def hides(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def lies(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(payload: Any) -> Any:
        return function(payload, None)

    return wrapper


def of_any(cls: Any, payload: Any) -> None: ...
def nothing() -> None: ...
def only_context(ctx: Context) -> None: ...
def only_keywords(**fields: Any) -> None: ...
def number(payload: int) -> None: ...
def text(payload: str | None) -> None: ...
def mixed(payload: Order | int) -> None: ...
def base_model(payload: BaseModel) -> None: ...
def more(payload: Order, ctx: Context, database: str) -> None: ...
def more_named(payload: Order, *, database: str) -> None: ...
def second_odd(payload: Order, database: str) -> None: ...
def unknown(payload: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def no_python(payload: Any) -> None: ...


no_python.__annotations__["payload"] = "not python"


def late_positional(payload: Order, more: int = 1, ctx: Context | None = None, /) -> None: ...
def unseen_second(payload: Order, other: mill.Client) -> None: ...


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (nothing, "takes no payload"), (only_context, "takes no payload"),
        (only_keywords, "hidden behind"), (hides(annotated), "hidden behind"),
        (lies(annotated), "decorator around it"), (number, "neither a pydantic model"),
        (text, "neither a pydantic model"), (mixed, "neither a pydantic model"),
        (base_model, "neither a pydantic model"), (more, "'database'"), (more_named, "'database'"),
        (second_odd, "'database'"), (unknown, "TYPE_CHECKING"), (no_python, "cannot be read"),
        (late_positional, "neither by its place"), (unseen_second, "'other'"),
        (Things.method, "it is a method"), (Order, "must decorate a function"),
        (classmethod(of_any), "must decorate a function"), (5, "must decorate a function"),
        (None, "must decorate a function"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", ascii(value)),
)
def test_what_cannot_be_understood_is_refused_with_name_and_reason(target: Any, words: str) -> None:
    with pytest.raises(JobDefinitionError, match=words) as refused:
        build_handler("t", target)
    name = getattr(target, "__name__", None)
    if callable(target) and "must" not in words and name != "wrapper":
        assert f"{name} (" in str(refused.value)
        assert "test_signatures.py:" in str(refused.value)
