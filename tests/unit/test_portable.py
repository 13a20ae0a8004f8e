"""Models travel as they are: what the same type reads again is equal, or nothing is sent."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import ipaddress
import pathlib
import re
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import orjson
import pydantic
import pytest
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    PlainSerializer,
    PrivateAttr,
    RootModel,
    SecretStr,
    computed_field,
    field_serializer,
    field_validator,
    model_serializer,
)
from typing_extensions import TypedDict

from tidemill.schemas.doors import Refused, encode_request
from tidemill.schemas.portable import (
    SENT_FORMS,
    TOLD_FORMS,
    NotPortable,
    Reader,
    is_same,
    reader_of,
)

T = TypeVar("T")
BASE = {"type": "t", "user_id": "u", "job_id": "j"}
NOON = datetime.datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=datetime.UTC)


class Colour(enum.Enum):
    RED = "red"
    MANY = (1, 2)


class Rank(enum.IntEnum):
    LOW = 1


class Order(BaseModel):
    order_id: str = Field(alias="orderId")


class ReadAlias(BaseModel):
    order_id: str = Field(validation_alias="orderId")


class ReadAliasWithDefault(BaseModel):
    order_id: str = Field(default="none", validation_alias="orderId")


class WriteAlias(BaseModel):
    order_id: str = Field(serialization_alias="orderId")


class WriteAliasWithDefault(BaseModel):
    order_id: str = Field(default="none", serialization_alias="orderId")


class TwoAliases(BaseModel):
    order_id: str = Field(default="none", validation_alias="in", serialization_alias="out")


class Choices(BaseModel):
    order_id: str = Field(default="none", validation_alias=AliasChoices("orderId", "id"))


class Path(BaseModel):
    first: int = Field(validation_alias=AliasPath("numbers", 0))
    second: int = Field(validation_alias=AliasPath("numbers", 1))
    deep: int = Field(default=0, validation_alias=AliasPath("a", "b"))


class ByName(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    order_id: str = Field(default="none", alias="orderId")


class NamesOnly(BaseModel):
    model_config = ConfigDict(validate_by_alias=False, validate_by_name=True)
    order_id: str = Field(default="none", alias="orderId")


def camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.title() for part in tail)


class Generated(BaseModel):
    model_config = ConfigDict(alias_generator=camel, extra="forbid")
    order_id: str


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int

    @computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def area(self) -> int:
        return self.width**2


class Many(BaseModel):
    amount: decimal.Decimal
    at: datetime.datetime
    on: datetime.date
    clock: datetime.time
    lasted: datetime.timedelta
    id: uuid.UUID
    words: set[str]
    frozen: frozenset[int]
    pair: tuple[int, str]
    data: bytes
    path: pathlib.PurePosixPath
    address: ipaddress.IPv4Address
    colour: Colour
    rank: Rank
    line: deque[int]
    by_number: dict[int, str]
    by_day: dict[datetime.date, int]
    pattern: re.Pattern[str]
    huge: float
    ratio: fractions.Fraction


class Base64(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    data: bytes


class Floats(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="strings")
    values: list[float]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    on: datetime.date
    id: uuid.UUID
    words: set[str]
    colour: Colour


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = Field(alias="livesLeft")


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    tricks: set[str] = Field(default_factory=set)


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    others: list[Cat | Dog] = []
    by_name: dict[str, Cat] = {}


class Box(BaseModel, Generic[T]):
    content: T


class Numbers(RootModel[list[int]]):
    pass


class Ages(RootModel[dict[str, int]]):
    pass


class Tree(BaseModel):
    name: str = Field(alias="Name")
    under: list[Tree] = []


@dataclass
class Point:
    x: int
    at: datetime.date
    tags: set[str] = field(default_factory=set)


@pydantic.dataclasses.dataclass
class AliasedPoint:
    x: int = Field(alias="X")
    inner: Point | None = None


class Seen(TypedDict):
    at: datetime.date


class Holder(BaseModel):
    point: Point
    aliased: AliasedPoint
    seen: Seen
    root: Numbers
    box: Box[decimal.Decimal]


class Zone(NamedTuple):
    low: int
    high: int


class WithZone(BaseModel):
    zone: Zone


class OwnDate(BaseModel):
    on: datetime.date

    @field_serializer("on")
    def write(self, value: datetime.date) -> str:
        return value.strftime("%d.%m.%Y")


class Stamp(BaseModel):
    at: Annotated[
        datetime.datetime, PlainSerializer(lambda value: value.timestamp(), return_type=float)
    ]


class WholeText(BaseModel):
    word: str

    @model_serializer
    def write(self) -> str:
        return self.word


class Text(BaseModel):
    inner: Json[dict[str, int]]


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")
    x: int = 0


class Defaulted(BaseModel):
    hidden: str = Field(default="usual", exclude=True)
    shown: str = ""


class Locked(BaseModel):
    x: int
    _lock: Any = PrivateAttr(default_factory=threading.Lock)
    _made_at: float = PrivateAttr(default_factory=time.perf_counter)
    _cache: dict[str, int] = PrivateAttr(default_factory=dict)


class Parsed(BaseModel):
    when: datetime.date | str
    words: list[str]

    @field_validator("words", mode="before")
    @classmethod
    def split(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value


MANY = Many(
    amount=decimal.Decimal("0.10"), at=NOON, on=NOON.date(), clock=NOON.time(),
    lasted=datetime.timedelta(days=1, microseconds=5), id=uuid.UUID(int=5), words={"b", "a"},
    frozen=frozenset({1}), pair=(1, "x"), data=b"abc", path=pathlib.PurePosixPath("/a/b"),
    address=ipaddress.IPv4Address("10.0.0.1"), colour=Colour.RED, rank=Rank.LOW, line=deque([1]),
    by_number={1: "one"}, by_day={NOON.date(): 2}, pattern=re.compile("a+"), huge=1e300,
    ratio=fractions.Fraction(1, 3),
)

TRAVEL: list[Any] = [
    Order(orderId="a"), ReadAlias(orderId="a"), ReadAliasWithDefault(orderId="a"),
    WriteAlias(order_id="a"), WriteAliasWithDefault(order_id="a"), TwoAliases(**{"in": "a"}),
    Choices(id="a"), Path.model_validate({"numbers": [1, 2], "a": {"b": 3}}), ByName(order_id="a"),
    NamesOnly(order_id="a"), Generated(orderId="a"), Computed(width=3), MANY,
    Base64(data=b"\xff\x00"), Floats(values=[float("nan"), float("inf"), 1.5]),
    Strict(on=NOON.date(), id=uuid.UUID(int=1), words={"a"}, colour=Colour.RED),
    Owner(pet=Cat(livesLeft=9), others=[Dog(tricks={"sit"})], by_name={"Tom": Cat(livesLeft=1)}),
    Box[decimal.Decimal](content=decimal.Decimal("1.50")), Box[Order](content=Order(orderId="x")),
    Box[list[Box[set[int]]]](content=[Box[set[int]](content={1})]), Numbers([1, 2]), Numbers([]),
    Ages({"ann": 5}), Ages({"root": 5}), Tree(Name="a", under=[Tree(Name="b")]),
    Point(1, NOON.date(), {"a"}), AliasedPoint(X=1, inner=Point(2, NOON.date())),
    Holder(
        point=Point(1, NOON.date()), aliased=AliasedPoint(X=2), seen={"at": NOON.date()},
        root=Numbers([3]), box=Box[decimal.Decimal](content=decimal.Decimal("1"))
    ),
    WithZone(zone=Zone(1, 2)), Stamp(at=NOON),
    Text.model_validate({"inner": '{"a": 1}'}),
    Extra.model_validate({"x": 1, "y": [2]}),
    Defaulted(shown="s"), Locked(x=1), Parsed(when=NOON.date(), words=["a"]),
    Parsed(when="2026-01-01x", words=[]),
]


def is_locked(value: Any) -> bool:
    """A lock is another one in each process."""
    return isinstance(value, Locked)


def name_of(value: Any) -> str:
    return type(value).__name__


@pytest.mark.parametrize("value", TRAVEL, ids=name_of)
def test_a_payload_arrives_equal(value: Any) -> None:
    body = orjson.loads(encode_request(BASE | {"payload": value}))
    arrived = Reader(type(value)).read(body["payload"])
    if isinstance(value, Floats):
        assert repr(arrived) == repr(value)
    elif isinstance(value, Locked):
        assert arrived.x == value.x
    else:
        assert arrived == value
    assert type(arrived) is type(value)


@pytest.mark.parametrize("value", TRAVEL, ids=name_of)
def test_a_model_inside_a_payload_arrives_equal(value: Any) -> None:
    body = orjson.loads(encode_request(BASE | {"payload": {"list": [value]}}))
    assert is_same(Reader(type(value)).read(body["payload"]["list"][0]), value) or is_locked(value)


@pytest.mark.parametrize("value", TRAVEL, ids=name_of)
def test_a_result_is_read_back_equal(value: Any) -> None:
    text = reader_of(type(value)).write(value, TOLD_FORMS, is_object=False)
    assert is_same(Reader(type(value)).read(orjson.loads(text)), value) or is_locked(value)


class Account(BaseModel):
    name: str
    secret: SecretStr


class Outer(BaseModel):
    accounts: list[Account]


class Hidden(BaseModel):
    hidden: str = Field(exclude=True)
    other: str = Field(default="usual", exclude=True)


class HiddenDefault(BaseModel):
    hidden: str = Field(default="usual", exclude=True)


class Marked(BaseModel):
    x: int
    _mark: int = PrivateAttr(default=0)


class Anything(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    value: Any


class Animal(BaseModel):
    name: str


class Bird(Animal):
    wings: int


class Cage(BaseModel):
    animal: Animal


class Lossy(BaseModel):
    price: float

    @model_serializer
    def write(self) -> dict[str, float]:
        return {"price": round(self.price), "more": 1}


class Breaks(BaseModel):
    x: int

    @field_validator("x")
    @classmethod
    def only_once(cls, value: int) -> int:
        return value + 1


class Raises(BaseModel):
    x: int

    @field_serializer("x")
    def write(self, value: int) -> int:
        raise RuntimeError("no form")


def broken(model: type[BaseModel], **fields: Any) -> BaseModel:
    """Made without a check."""
    return model.model_construct(**fields)


def marked() -> Marked:
    model = Marked(x=1)
    model._mark = 5
    return model


def circle() -> Tree:
    tree = Tree(Name="a")
    tree.under.append(tree)
    return tree


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (Account(name="a", secret=SecretStr("s")), "payload.secret"),
        (Outer(accounts=[Account(name="a", secret=SecretStr("s"))]), "payload.accounts.0.secret"),
        (marked(), "payload._mark"), (Anything(value={1, 2}), "payload.value"),
        (Anything(value=decimal.Decimal("1.5")), "payload.value"),
        (Anything(value=b"x"), "payload.value"), (Anything(value=object()), "payload"),
        (Anything(value=(1, 2)), "payload.value"),
        (Anything(value=float("nan")), "payload.value"),
        (Anything(value=Order(orderId="x")), "payload.value"),
        (Anything(value=2**70), "payload"), (Anything(value=[-(2**63) - 1]), "payload"),
        (Anything(value=10**25), "payload"),
        (Anything(value=open), "payload"),
        (Cage(animal=Bird(name="b", wings=2)), "payload.animal"),
        (Breaks(x=1), "payload.x"), (circle(), "payload"),
        (broken(Base64, data="no bytes"), "payload.data"),
        (broken(Computed, width="wide"), "payload.width"),
    ],
    ids=lambda value: ascii(value)[:30] if isinstance(value, str) else name_of(value),
)
def test_what_cannot_travel_is_refused_with_the_field(value: Any, field: str) -> None:
    inner = field.replace("payload", "payload.in.0")
    for payload, path in ((value, field), ({"in": [value]}, inner)):
        with pytest.raises(Refused, match=f"field '{re.escape(path)}"):
            encode_request(BASE | {"payload": payload})


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (Hidden(hidden="h"), "payload.hidden"), (HiddenDefault(hidden="h"), "payload.hidden"),
        (Lossy(price=1.5), "payload.price"), (Raises(x=1), "payload"),
        (WholeText(word="w"), "payload"), (OwnDate(on=NOON.date()), "payload.on"),
    ],
    ids=lambda value: value if isinstance(value, str) else name_of(value),
)
def test_what_a_users_serialiser_keeps_back_is_not_sent_around_it(value: Any, field: str) -> None:
    with pytest.raises(Refused, match=f"field '{re.escape(field)}'"):
        encode_request(BASE | {"payload": value})


def test_a_secret_never_stands_in_the_message() -> None:
    with pytest.raises(Refused) as raised:
        encode_request(BASE | {"payload": Account(name="a", secret=SecretStr("hunter2"))})
    assert "hunter2" not in str(raised.value)
    with pytest.raises(NotPortable):
        reader_of(Account).write(
            Account(name="a", secret=SecretStr("s")), SENT_FORMS, is_object=True
        )
