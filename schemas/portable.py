"""Models to JSON and back: what is sent is what the same type reads again, or nothing is sent.

Owns the reading of a payload by its type, and the forms in which a value of that type may travel.
Refuses to know what a job is: the same rules hold for payloads and for results.

A form counts only when the type reads it back as an equal value. So aliases, computed fields and
serialisers of every kind need no rule of their own, and what cannot travel is found before it does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson
from pydantic import AliasChoices, AliasPath, BaseModel, RootModel, TypeAdapter, ValidationError

from tidemill.schemas.first_problem import first_problem

ROOT: Final = "root"  # the key of a `RootModel` that is no JSON object by itself
TYPES_MAX: Final = 1_000  # types whose readers are kept; programs make few
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**64 - 1  # what ClickHouse and most languages can hold
INTEGER_DIGITS_MAX: Final = 20  # and a sign at most
DUMP_OPTIONS: Final = orjson.OPT_PASSTHROUGH_DATACLASS  # dataclasses may have aliases too

# Of pydantic's core schemas: what is read alike from Python values and from JSON text.
_ALIKE: Final = frozenset(
    {
        "model", "model-fields", "model-field", "typed-dict", "typed-dict-field", "dataclass",
        "dataclass-args", "dataclass-field", "str", "int", "float", "bool", "none", "nullable",
        "list", "dict", "any", "default", "literal", "definitions", "definition-ref", "union",
        "tagged-union", "function-after", "function-before", "function-wrap", "no-info",
        "with-info",
    }
)

_LONG_NUMBER: Final = re.compile(rb"\d{19}")
_NO_PARTS: Final = ("metadata", "serialization", "cls", "config", "computed_fields")

Form = Callable[["Reader", Any], bytes]
"""One way to write a value of a reader's type as JSON."""


class NotPortable(ValueError):
    """A value that JSON cannot carry there and back. `field` is a path, "" for the whole."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


class Reader:
    """Reads JSON values as one type: a model, a dataclass, a TypedDict or a union of them."""

    __slots__ = ("_first_form", "_is_alike", "adapter", "is_root", "name")

    def __init__(self, annotation: Any) -> None:
        """Raises what pydantic raises for a type that it cannot read."""
        self.adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        self.name = getattr(annotation, "__name__", None) or str(annotation)
        self.is_root = isinstance(annotation, type) and issubclass(annotation, RootModel)
        self._is_alike = all(kind in _ALIKE for kind in kinds_of(self.adapter.core_schema))
        self._first_form = 0

    def read(self, value: Any) -> Any:
        """A parsed JSON value as this type. Raises pydantic's ValidationError."""
        validator = self.adapter.validator
        try:
            if self._is_alike:
                return validator.validate_python(value)
            # A date, bytes or a set is written otherwise in JSON than it is in Python.
            return validator.validate_json(orjson.dumps(value))
        except (ValidationError, TypeError) as error:
            return self._read_otherwise(value, error)

    def _read_otherwise(self, value: Any, error: Exception) -> Any:
        validator = self.adapter.validator
        ways: list[Callable[[], Any]] = [lambda: validator.validate_python(value)]
        if self._is_alike:
            # A strict model takes from JSON what it refuses from Python.
            ways = [lambda: validator.validate_json(orjson.dumps(value))]
        if self.is_root and isinstance(value, dict) and value.keys() == {ROOT}:
            ways.append(lambda: validator.validate_json(orjson.dumps(value[ROOT])))
        for way in ways:
            try:
                return way()
            except (ValidationError, TypeError):
                continue
        raise error

    def json_schema(self) -> dict[str, Any]:
        """The JSON Schema of what it reads; raises what pydantic raises where there is none."""
        return self.adapter.json_schema()

    def write(self, value: Any, forms: tuple[Form, ...], *, is_object: bool) -> bytes:
        """The JSON text that this type reads back as an equal value. Raises NotPortable.

        `is_object`: the text must be that of a JSON object.
        """
        count, first = len(forms), self._first_form
        problem: NotPortable | None = None
        for number in range(count):
            index = (first + number) % count
            try:
                text = self._checked(value, forms[index], is_object=is_object)
            except NotPortable as found:
                # What its usual form says of it is best understood.
                problem = problem or found
                continue
            self._first_form = index
            return text
        assert problem is not None  # there is a form at least
        raise problem

    def _checked(self, value: Any, form: Form, *, is_object: bool) -> bytes:
        try:
            text = form(self, value)
            parsed = _parsed(text)
            if is_object and not isinstance(parsed, dict):
                if not self.is_root:
                    raise NotPortable("", f"its JSON is no object but {type(parsed).__name__}")
                parsed = {ROOT: parsed}
                text = orjson.dumps(parsed)
            back = self.read(parsed)
        except NotPortable:
            raise
        except ValidationError as error:
            first = first_problem(error)
            raise NotPortable(first.path, f"its JSON is not read back: {first.message}") from None
        except Exception as error:  # a serialiser of the user's may do anything
            raise NotPortable("", f"{type(error).__name__}: {error}") from error
        if not is_same(back, value):
            self._refuse_change(value, back, text)
        return text

    def _refuse_change(self, value: Any, back: Any, text: bytes) -> None:
        """Raise, unless what differs is made anew with every reading: a lock, an instant."""
        again = self.read(orjson.loads(text))
        for path, is_private in differences(value, back):
            if is_private and any(path == other for other, _ in differences(back, again)):
                continue
            raise NotPortable(
                path,
                f"{_shown(value, path)} does not come back from JSON as it was; give it a form in "
                "JSON (a serialiser, ser_json_*), or leave it out",
            )


def _parsed(text: bytes) -> Any:
    if _LONG_NUMBER.search(text) is not None:
        # orjson reads integers beyond 64 bits as floats, which would change them silently.
        json.loads(text, parse_int=_checked_int)
    return orjson.loads(text)


def _checked_int(digits: str) -> int:
    if len(digits) > INTEGER_DIGITS_MAX + 1 or not INTEGER_MIN <= int(digits) <= INTEGER_MAX:
        raise NotPortable("", f"the integer {digits[:24]} does not fit 64 bits; send it as a text")
    return int(digits)


def _shown(value: Any, path: str) -> str:
    for part in path.split(".") if path else ():
        if isinstance(value, Mapping):
            value = next((each for key, each in value.items() if str(key) == part), None)
        elif isinstance(value, list | tuple):
            value = value[int(part)]
        else:
            value = getattr(value, part, None)
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@lru_cache(maxsize=TYPES_MAX)
def _reader_of(kind: Hashable) -> Reader:
    return Reader(kind)


reader_of: Final[Callable[[Any], Reader]] = _reader_of
"""The reader of a type, made once."""


def kinds_of(schema: Any) -> Iterator[str]:
    """The kinds of all parts of a core schema."""
    if isinstance(schema, dict):
        kind = schema.get("type")
        if isinstance(kind, str):
            yield kind
        for name, part in schema.items():
            if name not in _NO_PARTS:
                yield from kinds_of(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            yield from kinds_of(part)


# --- the forms ------------------------------------------------------------------------------------


def _by_alias(reader: Reader, value: Any) -> bytes:
    return _text(reader, value, by_alias=True, round_trip=True)


def _by_name(reader: Reader, value: Any) -> bytes:
    return _text(reader, value, by_alias=False, round_trip=True)


def _whole(reader: Reader, value: Any) -> bytes:
    return _text(reader, value, by_alias=True, round_trip=False)


def _whole_by_name(reader: Reader, value: Any) -> bytes:
    return _text(reader, value, by_alias=False, round_trip=False)


def _as_read(reader: Reader, value: Any) -> bytes:
    """By the names that are read, with the user's own serialisers."""
    return orjson.dumps(_rebuilt(value, _parsed(_by_name(reader, value))))


def _text(reader: Reader, value: Any, *, by_alias: bool, round_trip: bool) -> bytes:
    # Not `to_python`: what a model says of NaN counts only where text is written.
    return reader.adapter.serializer.to_json(
        value, by_alias=by_alias, round_trip=round_trip, warnings=False
    )


SENT_FORMS: Final[tuple[Form, ...]] = (_by_alias, _by_name, _as_read)
"""Of a payload: what its handler reads."""

TOLD_FORMS: Final[tuple[Form, ...]] = (_whole, _by_alias, _whole_by_name, _by_name, _as_read)
"""Of a result: computed fields too, where the model takes them back."""

def _rebuilt(value: Any, dumped: Any) -> Any:
    """`dumped`, which is `value` by the names of its fields, by the names that are read."""
    if isinstance(value, RootModel):
        return _rebuilt(value.root, dumped)
    if isinstance(dumped, list):
        if isinstance(value, list | tuple | set | frozenset) and len(dumped) == len(value):
            return [_rebuilt(each, part) for each, part in zip(value, dumped, strict=True)]
    elif isinstance(dumped, dict):
        named = _named_fields(value)
        if named is not None:
            return _rebuilt_fields(value, named, dumped)
        if isinstance(value, dict) and len(dumped) == len(value):
            return {
                key: _rebuilt(each, part)
                for (key, part), each in zip(dumped.items(), value.values(), strict=True)
            }
    return dumped


class _Named(NamedTuple):
    """Fields by name, and whether their aliases are read."""

    fields: dict[str, Any]
    reads_alias: bool


def _named_fields(value: Any) -> _Named | None:
    kind = type(value)
    if isinstance(value, BaseModel):
        config: Mapping[str, Any] = kind.model_config
        return _Named(dict(kind.model_fields), config.get("validate_by_alias", True) is not False)
    if is_dataclass(value):
        known = getattr(kind, "__pydantic_fields__", None)
        config = getattr(kind, "__pydantic_config__", None) or {}
        reads_alias = config.get("validate_by_alias", True) is not False
        return _Named(known or {each.name: None for each in fields(value)}, reads_alias)
    return None


def _rebuilt_fields(value: Any, named: _Named, dumped: dict[str, Any]) -> dict[str, Any]:
    built: dict[str, Any] = {}
    for name, part in dumped.items():
        info = named.fields.get(name)
        alias = None if info is None or not named.reads_alias else info.validation_alias
        inner = _rebuilt(getattr(value, name, None), part)
        _put(built, name if alias is None else alias, inner)
    return built


def _put(built: dict[str, Any], alias: str | AliasPath | AliasChoices, part: Any) -> None:
    if isinstance(alias, AliasChoices):
        alias = alias.choices[0]
    if isinstance(alias, str):
        built[alias] = part
        return
    place: Any = built
    for step, following in zip(alias.path, [*alias.path[1:], None], strict=True):
        inner: Any = part if following is None else [] if isinstance(following, int) else {}
        if isinstance(step, int):
            place += [None] * (step + 1 - len(place))
            if following is None or place[step] is None:
                place[step] = inner
        elif following is None or step not in place:
            place[step] = inner
        place = place[step]


# --- equal or not ---------------------------------------------------------------------------------


def is_same(one: Any, other: Any) -> bool:
    """Equal as Python says, and NaN is NaN."""
    return _equal(one, other) or not any(True for _ in differences(one, other))


def differences(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, bool]]:
    """Where two values differ: the paths, and whether it is in a private attribute."""
    if type(one) is not type(other):
        if not _equal(one, other):
            yield path, False
        return
    if isinstance(one, float) and one != one and other != other:
        return
    prefix = f"{path}." if path else ""
    if isinstance(one, BaseModel):
        yield from _differences_in(_fields(one), _fields(other), prefix)
        yield from _differences_in(one.model_extra or {}, other.model_extra or {}, prefix)
        for name, _ in _differences_in(_private(one), _private(other), prefix):
            yield name, True
    elif isinstance(one, dict):
        yield from _differences_in(one, other, prefix)
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            yield path, False
            return
        for index, (mine, yours) in enumerate(zip(one, other, strict=True)):
            yield from differences(mine, yours, f"{prefix}{index}")
    elif is_dataclass(one):
        names = [each.name for each in fields(one) if each.compare]
        yield from _differences_in(
            {name: getattr(one, name) for name in names},
            {name: getattr(other, name) for name in names}, prefix,
        )
    elif not _equal(one, other):
        yield path, False


def _differences_in(
    one: Mapping[Any, Any], other: Mapping[Any, Any], prefix: str
) -> Iterator[tuple[str, bool]]:
    for key in one.keys() | other.keys():
        if key not in one or key not in other:
            yield f"{prefix}{key}", False
        else:
            yield from differences(one[key], other[key], f"{prefix}{key}")


def _fields(model: BaseModel) -> dict[str, Any]:
    known = type(model).model_fields
    return {name: value for name, value in model.__dict__.items() if name in known}


def _private(model: BaseModel) -> dict[str, Any]:
    return model.__pydantic_private__ or {}


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001  # a user's `__eq__` may do anything
        return False
