"""What a handler returns, as JSON: every value that pydantic can write, and what it cannot, early.

Owns the forms of results and the look at a return annotation. Refuses to know what becomes of them.

Plain JSON values cost nothing here: orjson asks only for what it does not know. A model is written
so that its own class reads it back (`tidemill.schemas.portable`), computed fields included where it
can.
"""

from __future__ import annotations

import base64
import collections.abc
import inspect
import logging
import os
import typing
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

import orjson
from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError

from tidemill.agents.worker.annotations import resolved
from tidemill.agents.worker.errors import JobDefinitionError
from tidemill.schemas.portable import DUMP_OPTIONS, TOLD_FORMS, NotPortable, reader_of
from tidemill.schemas.requests import NESTED_MAX, holds_nan

TOLD_TYPES_MAX: Final = 1_000  # types that a line has told of; programs have few
_NAN: Final = "it holds NaN or infinity, which JSON has not; return None or a text there"
_NO_RESULT: Final = (
    inspect.Parameter.empty, Any, object, None, type(None), typing.NoReturn, typing.Never,
)
_AWAITED: Final = (collections.abc.Awaitable, collections.abc.Coroutine)
_LISTS: Final = (set, frozenset, deque, tuple, range, collections.abc.Set)
# Of pydantic's core schemas: values without a form in JSON, unless a serialiser gives them one.
_FORMLESS: Final = frozenset({"callable", "is-subclass", "is-instance"})
_OWN_FORMS: Final = frozenset({"function-plain", "function-wrap"})
_INFERRED: Final = (
    str, bytes, bytearray, int, float, dict, list, tuple, set, frozenset, BaseModel,
)

_ANY: Final = TypeAdapter(Any).serializer

logger = logging.getLogger("tidemill.worker")

_told: set[type] = set()


class NotJson(ValueError):
    """A result that JSON cannot hold, and why."""


def write(value: Any) -> bytes:
    """Any result as JSON. Raises NotJson."""
    try:
        text = orjson.dumps(value, as_json, DUMP_OPTIONS)
    except (TypeError, ValueError, RecursionError):
        value = _otherwise(value)
        text = _written(value)
    if b"null" in text and holds_nan(value):
        raise NotJson(_NAN)
    return text


def _written(value: Any) -> bytes:
    try:
        return orjson.dumps(value, as_json, DUMP_OPTIONS | orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError, RecursionError) as error:
        raise NotJson(_reason(error)) from None


def _otherwise(value: Any) -> Any:
    """The same with keys that are texts: of what orjson could not write, keys may be the cause."""
    try:
        return _with_text_keys(value, 0)
    except (TypeError, ValueError, RecursionError) as error:
        raise NotJson(_reason(error)) from None


def _with_text_keys(value: Any, depth: int) -> Any:
    if depth > NESTED_MAX:
        raise NotJson(f"it is nested more than {NESTED_MAX} deep")
    if isinstance(value, Mapping):
        named = {_key(key): _with_text_keys(each, depth + 1) for key, each in value.items()}
        if len(named) != len(value):
            raise NotJson("two of its keys are the same text in JSON")
        return named
    if isinstance(value, (list, *_LISTS)):
        return [_with_text_keys(each, depth + 1) for each in value]
    return value


def _key(key: Any) -> str:
    return key if type(key) is str else str(next(iter(_plain({key: None}))))


def _reason(error: BaseException) -> str:
    cause = error.__cause__
    return str(error if cause is None else cause)


def as_json(value: Any) -> Any:
    """What orjson does not know by itself; raises ValueError for what nobody knows."""
    if isinstance(value, BaseModel) or (is_dataclass(value) and not isinstance(value, type)):
        return _model(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, _LISTS):
        return list(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _text_of(bytes(value))
    return _plain(value)


def _plain(value: Any) -> Any:
    """In pydantic's JSON form, by what it is; raises ValueError for what pydantic does not know."""
    return _ANY.to_python(value, mode="json", by_alias=True)


def _text_of(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


def _model(value: Any) -> Any:
    kind = type(value)
    try:
        reader = reader_of(kind)
        return orjson.Fragment(reader.write(value, TOLD_FORMS, is_object=False))
    except NotPortable as error:
        return _as_good_as_it_gets(value, error)
    except Exception as error:
        if isinstance(value, BaseModel):
            raise NotJson(f"{kind.__name__}: {error}") from error
        # A dataclass of which pydantic knows no field.
        return {each.name: getattr(value, each.name) for each in fields(value)}


def _as_good_as_it_gets(value: Any, problem: NotPortable) -> orjson.Fragment:
    """The work is done: its result is told, though its class reads something else there."""
    kind = type(value)
    adapter = reader_of(kind).adapter
    try:
        text = adapter.dump_json(value, by_alias=True, warnings=False)
    except ValueError as error:
        raise NotJson(f"{kind.__name__}: {error}") from None
    if b"null" in text and holds_nan(adapter.dump_python(value, warnings=False)):
        raise NotJson(_NAN)
    if kind not in _told and len(_told) < TOLD_TYPES_MAX:
        _told.add(kind)
        logger.warning(
            "results that are a %s say in JSON what the class does not read back: %s",
            kind.__qualname__, problem,
        )
    return orjson.Fragment(text)


# --- at import ------------------------------------------------------------------------------------

def told_type(function: Callable[..., Any], names: Mapping[str, Any]) -> Any:
    """The type that a return annotation promises; None: nothing to write or to read by."""
    annotation = getattr(function, "__annotations__", {}).get("return", inspect.Parameter.empty)
    try:
        told = resolved(function, "return", annotation, names)
    except Exception:  # noqa: BLE001  # an annotation that only checkers understand
        return None
    if typing.get_origin(told) in _AWAITED:
        told = typing.get_args(told)[-1]
    return None if told in _NO_RESULT or isinstance(told, typing.TypeVar) else told


Writer = Callable[[Any], Any]
"""From what a handler returned to something that `write` takes."""


def writer_of(
    where: str, function: Callable[..., Any], names: Mapping[str, Any]
) -> Writer | None:
    """How results of this function's return annotation are written; None: as they are.

    Raises JobDefinitionError for a type that has no form in JSON.
    """
    told = told_type(function, names)
    if told is None:
        return None
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(told)
        schema = adapter.core_schema
    except PydanticSchemaGenerationError:
        if any(map(_is_abstract, _classes_in(told))):
            return None
        raise _formless(where, told, "") from None
    except Exception:  # noqa: BLE001  # a model that is not complete yet
        return None
    for path, kind in _formless_parts(schema, ""):
        raise _formless(where, kind, path)
    return _Annotated(adapter) if any(_own_forms(schema)) else None


def _formless(where: str, kind: Any, path: str) -> JobDefinitionError:
    name = kind.__qualname__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
    place = f" in {path!r}" if path else ""
    return JobDefinitionError(
        f"{where}: what it returns{place} is annotated as {name}, which has no form in JSON; "
        "return a pydantic model, a dict or plain values, or give the type a serialiser"
    )


class _Annotated:
    """Writes by the annotation, where that has a serialiser of its own."""

    def __init__(self, adapter: TypeAdapter[Any]) -> None:
        self._adapter = adapter

    def __call__(self, value: Any) -> Any:
        try:
            text = self._adapter.serializer.to_json(value, by_alias=True, warnings="error")
        except Exception:  # noqa: BLE001  # it is no value of that type: written as what it is
            return value
        return orjson.loads(text)


def _formless_parts(schema: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Parts of a type that JSON has no form for: where, and the class."""
    if isinstance(schema, list | tuple):
        for part in schema:
            yield from _formless_parts(part, path)
        return
    if not isinstance(schema, dict) or "serialization" in schema:
        return
    kind = schema.get("type")
    if kind == "json-or-python":
        yield from _formless_parts(schema.get("json_schema"), path)
        return
    if kind in _FORMLESS and not _is_inferred(schema):
        yield path, schema.get("cls", kind)
    for name, part in schema.items():
        if name == "fields" and isinstance(part, dict):
            for field, inner in part.items():
                yield from _formless_parts(inner, f"{path}.{field}" if path else str(field))
        elif name not in ("metadata", "cls", "config", "computed_fields", "default"):
            yield from _formless_parts(part, path)


def _is_inferred(schema: Mapping[str, Any]) -> bool:
    """Whether pydantic writes values of this class by what they are, or a subclass may be such."""
    kind = schema.get("cls")
    if schema.get("type") != "is-instance" or not isinstance(kind, type):
        return False
    return issubclass(kind, _INFERRED) or is_dataclass(kind) or _is_abstract(kind)


def _is_abstract(kind: Any) -> bool:
    """Says what a value can do and not what it is."""
    return (
        inspect.isabstract(kind)
        or getattr(kind, "__module__", "") in ("typing", "collections.abc")
        or bool(getattr(kind, "_is_protocol", False))
    )


def _classes_in(annotation: Any) -> Iterator[Any]:
    parts = typing.get_args(annotation)
    yield typing.get_origin(annotation) or annotation
    for part in parts:
        yield from _classes_in(part)


def _own_forms(schema: Any) -> Iterator[bool]:
    """Whether a serialiser stands in the annotation itself; those of models are the models'."""
    if isinstance(schema, list | tuple):
        for part in schema:
            yield from _own_forms(part)
    elif isinstance(schema, dict) and schema.get("type") not in ("model", "dataclass"):
        form = schema.get("serialization")
        if isinstance(form, dict) and form.get("type") in _OWN_FORMS:
            yield True
        for name, part in schema.items():
            if name not in ("metadata", "cls", "config", "serialization", "default"):
                yield from _own_forms(part)
