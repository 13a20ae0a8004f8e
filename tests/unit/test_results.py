"""Results: whatever pydantic can write is told, and a type that it cannot write is known at import.

The work is done when a result is written, so nothing that has a form in JSON may fail there.
"""

from __future__ import annotations

import asyncio
import datetime
import decimal
import enum
import ipaddress
import logging
import pathlib
import re
import socket
import threading
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Never, NoReturn, Protocol, TypeVar

import orjson
import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    computed_field,
    field_serializer,
)
from typing_extensions import TypedDict

from tidemill.agents.worker import outcomes, results
from tidemill.agents.worker.errors import JobDefinitionError
from tidemill.agents.worker.handlers import Handler, build_handler

if TYPE_CHECKING:
    pass

JOB = {"user_id": "u", "job_id": "j", "run": 1, "attempt": 1, "epoch": 1, "type": "t"}
NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
Pair = namedtuple("Pair", "left right")  # as people write it
T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"


class Order(BaseModel):
    order_id: str = Field(alias="orderId")
    price: decimal.Decimal = decimal.Decimal("1.50")


class Square(BaseModel):
    width: int

    @computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def area(self) -> int:
        return self.width**2


class ClosedSquare(Square):
    model_config = ConfigDict(extra="forbid")


class Secret(BaseModel):
    word: SecretStr


class Day(BaseModel):
    on: datetime.date

    @field_serializer("on")
    def write(self, value: datetime.date) -> str:
        return value.strftime("%d.%m.%Y")


@dataclass
class Place:
    folder: pathlib.Path
    at: datetime.timedelta
    names: set[str] = field(default_factory=set)


class Plain:
    """Of which nobody knows a form."""


@dataclass
class Holds:
    plain: Any


def told(value: Any, handler: Handler | None = None) -> dict[str, Any]:
    end = outcomes.result(value, None, handler)
    outcome: dict[str, Any] = orjson.loads(outcomes.encode(JOB, end, 1, 2))
    return outcome


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (decimal.Decimal("0.10"), "0.10"), (datetime.timedelta(days=1, seconds=5), "P1DT5S"),
        (pathlib.Path("/a/b"), "/a/b"), (pathlib.PurePosixPath("x"), "x"), ({1}, [1]),
        (frozenset({"a"}), ["a"]), (b"abc", "abc"), ("ä".encode(), "ä"), (b"\xff\x00", "/wA="),
        (bytearray(b"x"), "x"), (memoryview(b"x"), "x"), (deque([1, 2]), [1, 2]),
        (Pair(1, {2}), [1, [2]]), (Counter("aab"), {"a": 2, "b": 1}), (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, {"a": [1]}), {"a": [1]}),
        (types.MappingProxyType({"a": {1}}), {"a": [1]}),
        (ipaddress.ip_address("10.0.0.1"), "10.0.0.1"), (re.compile("a+"), "a+"),
        (Colour.RED, "red"), (uuid.UUID(int=1), str(uuid.UUID(int=1))), (NOON.date(), "2026-01-01"),
        (range(3), [0, 1, 2]), ((number for number in (1, 2)), [1, 2]),
        ({"a": [{"b": decimal.Decimal(1)}]}, {"a": [{"b": "1"}]}),
        ({decimal.Decimal("1.5"): 1}, {"1.5": 1}), ({NOON.date(): {1}}, {"2026-01-01": [1]}),
        ({Colour.RED: 1}, {"red": 1}), ({None: 1, True: 2}, {"None": 1, "true": 2}),
        ({uuid.UUID(int=1): 1}, {str(uuid.UUID(int=1)): 1}), ({("a", 1): [b"x"]}, {"a,1": ["x"]}),
        (Order(orderId="a"), {"orderId": "a", "price": "1.50"}),
        ([{"x": Order(orderId="a")}], [{"x": {"orderId": "a", "price": "1.50"}}]),
        ({1: Order(orderId="a")}, {"1": {"orderId": "a", "price": "1.50"}}),
        (Square(width=2), {"width": 2, "area": 4}), (ClosedSquare(width=2), {"width": 2}),
        (Place(pathlib.Path("/a"), datetime.timedelta(seconds=1), {"n"}),
         {"folder": "/a", "at": "PT1S", "names": ["n"]}),
        (Holds(decimal.Decimal(1)), {"plain": "1"}),
        (Holds([Holds({1})]), {"plain": [{"plain": [1]}]}),
        (Secret(word=SecretStr("s")), {"word": "**********"}),
        (Day(on=NOON.date()), {"on": "01.01.2026"}), (None, None),
        ([None, {"a": None}], [None, {"a": None}]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_pydantic_can_write_is_a_result(value: Any, expected: Any) -> None:
    outcome = told(value)
    assert outcome["kind"] == "succeeded", outcome
    assert outcome.get("result") == expected


def circle() -> list[Any]:
    value: list[Any] = []
    value.append({"me": value})
    return value


class Unwritable(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    plain: Any


class Number(BaseModel):
    value: float


@pytest.mark.parametrize(
    "value",
    [
        Plain(), [Plain()], {"a": Plain()}, {1: Plain()}, Holds(Plain()), Unwritable(plain=Plain()),
        threading.Lock(), len, Plain, 2**64, {"a": [2**70]}, "\ud800", {"\ud800": 1}, circle(),
        float("nan"), {1: float("inf")}, {float("nan")}, deque([float("inf")]), {1: 1, "1": 2},
        Number(value=float("nan")), [Number(value=float("inf")), None],
        {"x": Number(value=float("nan")), "y": None},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_form_fails_with_a_reason(value: Any) -> None:
    error = told(value)["error"]
    assert (error["code"], error["retryable"]) == ("RESULT_NOT_JSON", False)


def test_a_result_that_its_class_does_not_read_back_is_told_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_told", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            told(Day(on=NOON.date()))
    assert [record.message.count("Day") for record in caplog.records] == [1]
    assert "s3cret" not in caplog.text


# --- the return annotation ------------------------------------------------------------------------


class Frame(TypedDict):
    rows: list[int]


class Named(Protocol):
    name: str


Euros = Annotated[decimal.Decimal, PlainSerializer(lambda value: f"{value} EUR", return_type=str)]


def handler_that_returns(annotation: Any) -> Handler:
    async def handle(payload: dict[str, Any]) -> None: ...

    handle.__annotations__["return"] = annotation
    return build_handler("t", handle)


@pytest.mark.parametrize(
    "annotation",
    [
        None, Any, object, "None", NoReturn, Never, int, str | None, dict[str, Any], list[Order],
        Order, Order | None, Place, Frame, set[decimal.Decimal], bytes, pathlib.Path, Colour,
        datetime.timedelta, "OnlyForCheckers", "OnlyForCheckers | None", Iterable[int],
        Mapping[str, set[int]], tuple[int, ...], Iterator[int], uuid.UUID, Pair, T, Named,
        Awaitable[int], ipaddress.IPv4Address, re.Pattern[str], deque[int], "no valid python",
        Annotated[int, "words"], Holds, BaseModel, Secret, complex,
    ],
    ids=str,
)
def test_return_types_that_may_hold_json_are_taken(annotation: Any) -> None:
    assert handler_that_returns(annotation).type == "t"


class WithSocket(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    line: socket.socket


class WithCallback(BaseModel):
    then: Callable[[], None]


class WithForm(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    line: Annotated[socket.socket, PlainSerializer(lambda value: value.fileno(), return_type=int)]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Plain, "Plain"), (list[Plain], "Plain"), (Plain | None, "Plain"),
        (socket.socket, "socket"),
        (dict[str, threading.Thread], "Thread"), (Callable[[], int], "callable"),
        (type[int], "int"), (WithSocket, "'line'"), (list[WithCallback], "'then'"),
        (Awaitable[Plain], "Plain"), (asyncio.Task[int], "Task"), ("Plain", "Plain"),
    ],
    ids=str,
)
def test_a_return_type_without_a_form_is_refused_at_import(annotation: Any, words: str) -> None:
    with pytest.raises(JobDefinitionError, match="no form in JSON") as refused:
        handler_that_returns(annotation)
    assert words in str(refused.value)
    assert "test_results.py" in str(refused.value)


def test_a_serialiser_gives_a_type_a_form() -> None:
    assert handler_that_returns(WithForm).writer is None
    handler = handler_that_returns(list[Euros])
    assert told([decimal.Decimal("1.50")], handler)["result"] == ["1.50 EUR"]
    # What is no value of the annotation is told as what it is.
    assert told({"other": {1}}, handler)["result"] == {"other": [1]}
    assert told(None, handler_that_returns(Euros | None)).get("result") is None


def test_plain_annotations_cost_nothing() -> None:
    for annotation in (dict[str, int], Order, list[decimal.Decimal], Place, None):
        assert handler_that_returns(annotation).writer is None
