"""What a handler's signature asks for: a payload, and perhaps a context, wherever they stand.

Owns the reading of signatures and the call that fits them. Refuses to know what a handler does.

A handler is called with the payload, or with payload and context, by position. What asks for them
in another way, by keyword or the other way round, gets a function in front that passes them on.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, Final

import typing_extensions
from pydantic import BaseModel

from tidemill.agents.worker.annotations import members_of, resolved
from tidemill.agents.worker.context import Context
from tidemill.agents.worker.errors import JobDefinitionError
from tidemill.schemas.portable import Reader

CONTEXT_NAME: Final = "ctx"
CONTEXT_NAMES: Final = (CONTEXT_NAME, "context")  # the second one only without an annotation
_FORMS: Final = (
    "write (payload) or (payload, ctx) with payload: YourModel or payload: dict"
)
_EMPTY: Final = inspect.Parameter.empty
_POSITIONAL: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)
_VARIABLE: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_DICTS: Final = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_NAMES_CONTEXT: Final = re.compile(r"(?<!\w)Context(?!\w)")

Parameters = list[inspect.Parameter]


@dataclass(frozen=True, slots=True)
class Signature:
    """What the worker passes to a handler, and to what."""

    #: None: a dict.
    reader: Reader | None
    #: The payload's annotation; None: a dict.
    model: Any
    takes_context: bool
    #: Takes the payload, and the context when there is one, by position.
    function: Callable[..., Any]
    is_coroutine: bool


def base_of(function: Any) -> Any:
    """The function behind decorators, partials, methods and objects with `__call__`."""
    seen = 0
    while seen < 100:  # a decorator may name itself as what it wraps
        seen += 1
        if isinstance(function, functools.partial | functools.partialmethod):
            function = function.func
        elif isinstance(function, staticmethod | classmethod) or inspect.ismethod(function):
            function = function.__func__
        elif getattr(function, "__wrapped__", None) is not None:
            function = function.__wrapped__
        elif not inspect.isroutine(function) and not isinstance(function, type):
            inner = getattr(type(function), "__call__", None)  # noqa: B004  # what it is, not if
            if not inspect.isfunction(inner):
                return function
            function = inner
        else:
            return function
    return function


def place_of(function: Callable[..., Any]) -> str:
    """Name, file and line of a function, for people."""
    base = base_of(function)
    code = getattr(base, "__code__", None)
    if code is None:
        return f"{function!r}"
    return f"{base.__qualname__} ({code.co_filename}:{code.co_firstlineno})"


def read_signature(where: str, target: Any, local_names: Mapping[str, Any]) -> Signature:
    """Read and check; JobDefinitionError names what is wrong and the forms that work."""
    function = target.__func__ if isinstance(target, staticmethod) else target
    base = base_of(function)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise JobDefinitionError(
            f"{where}: its parameters cannot be read ({error}); write a function around it"
        ) from None
    reading = _Reading(where, base, local_names)
    context = next((each for each in parameters if reading.is_context(each)), None)
    payload = _payload_among([each for each in parameters if each is not context])
    _check_payload(where, base, payload, parameters)
    assert payload is not None  # else it was refused
    for each in parameters:
        if each not in (payload, context) and each.default is _EMPTY and each.kind not in _VARIABLE:
            raise JobDefinitionError(
                f"{where}: nobody passes the parameter {each.name!r}; give it a default, or, if it "
                f"is the context, name it {CONTEXT_NAME!r} or annotate it with tidemill.Context; "
                f"{_FORMS}"
            )
    model = reading.payload_model(payload)
    fitting = _fitting(where, function, parameters, payload, context)
    if fitting is not function or not inspect.isfunction(function):
        fitting = _as_function(fitting, base)
    return Signature(
        reader=None if model is None else reading.reader(payload, model),
        model=model,
        takes_context=context is not None,
        function=fitting,
        is_coroutine=is_coroutine(function),
    )


def _as_function(fitting: Callable[..., Any], base: Any) -> Callable[..., Any]:
    """A function that names the user's own as what it wraps."""

    def call(*arguments: Any) -> Any:
        return fitting(*arguments)

    return functools.update_wrapper(call, base)


def is_coroutine(function: Any) -> bool:
    """Whether a call gives a coroutine: of `async def`, also in a partial or an object."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.iscoroutinefunction(function):
        return True
    inner = None if inspect.isroutine(function) else getattr(type(function), "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(inner)


def _payload_among(parameters: Parameters) -> inspect.Parameter | None:
    """The first that takes a position, else the first that somebody must name."""
    positional = [each for each in parameters if each.kind in _POSITIONAL]
    named = [each for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    required = [each for each in named if each.default is _EMPTY or each.name == "payload"]
    return next(iter([*positional, *required]), None)


def _check_payload(
    where: str, base: Any, payload: inspect.Parameter | None, parameters: Parameters
) -> None:
    if payload is None:
        if any(each.kind in _VARIABLE for each in parameters):
            raise JobDefinitionError(
                f"{where}: what it takes is hidden behind * or **; name the parameters, or use "
                f"functools.wraps in the decorator; {_FORMS}"
            )
        raise JobDefinitionError(f"{where}: it takes no payload; {_FORMS}")
    owner = getattr(base, "__qualname__", "").rpartition(".")[0]
    is_method = bool(owner) and not owner.endswith("<locals>")
    if is_method and payload.name in ("self", "cls") and payload.annotation is _EMPTY:
        raise JobDefinitionError(
            f"{where}: it is a method, and nobody has an object to call it on; put @job above "
            "@staticmethod, or use a function"
        )


def _fitting(
    where: str,
    function: Callable[..., Any],
    parameters: Parameters,
    payload: inspect.Parameter,
    context: inspect.Parameter | None,
) -> Callable[..., Any]:
    """A callable that takes payload and context by position; checked that it can be called so."""
    wanted = [payload] if context is None else [payload, context]
    positional = [each for each in parameters if each.kind in _POSITIONAL]
    leading = positional[: len(wanted)]
    names = [each.name for each in wanted]
    fitting = function
    if leading != wanted:
        is_turned = leading == wanted[::-1]
        by_position = next(
            (each for each in wanted[::-1] if each.kind is each.POSITIONAL_ONLY), None
        )
        if is_turned:
            fitting = _turned(function)
        elif leading[:1] == [payload] and wanted[-1].kind is not payload.POSITIONAL_ONLY:
            fitting = _with_named_context(function, names[1])
        elif by_position is None:
            fitting = _with_names(function, names)
        else:
            raise JobDefinitionError(
                f"{where}: the parameter {by_position.name!r} can be passed neither by its place "
                f"nor by its name; {_FORMS}"
            )
    _check_call(where, function, parameters, wanted)
    return fitting


def _turned(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda payload, context: function(context, payload)


def _with_named_context(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    return lambda payload, context: function(payload, **{name: context})


def _with_names(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    return lambda *given: function(**dict(zip(names, given, strict=True)))


def _check_call(
    where: str, function: Callable[..., Any], parameters: Parameters, wanted: Parameters
) -> None:
    """A decorator with `functools.wraps` shows the parameters of what it wraps, not its own."""
    places = [each for each in parameters if each in wanted and each.kind in _POSITIONAL]
    leading = [each for each in parameters if each.kind in _POSITIONAL][: len(places)]
    by_position = places if leading == places else places[:1] if leading[:1] == places[:1] else []
    by_name = {each.name: None for each in wanted if each not in by_position}
    try:
        own = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return  # written in C, such as `lru_cache`: it shows what it wraps
    try:
        own.bind(*(None for _ in by_position), **by_name)
    except TypeError as error:
        raise JobDefinitionError(
            f"{where}: a decorator around it takes other parameters than it shows ({error}); let "
            "the wrapper take (*args, **kwargs) and pass them on"
        ) from None


class _Reading:
    """The annotations of one function."""

    def __init__(self, where: str, base: Any, names: Mapping[str, Any]) -> None:
        self._where = where
        self._base = base
        self._names = names

    def is_context(self, parameter: inspect.Parameter) -> bool:
        if parameter.kind in _VARIABLE:
            return False
        if parameter.annotation is _EMPTY:
            return parameter.name in CONTEXT_NAMES
        try:
            annotation = self._resolved(parameter)
        except Exception:  # noqa: BLE001  # a name that only checkers import, or no Python at all
            text = str(parameter.annotation)
            return parameter.name == CONTEXT_NAME or _NAMES_CONTEXT.search(text) is not None
        members = members_of(annotation)
        if Context in members:
            return True
        return parameter.name == CONTEXT_NAME and not any(map(_is_readable, members))

    def payload_model(self, parameter: inspect.Parameter) -> Any:
        """The annotation by which a payload is read; None: it stays a dict."""
        try:
            annotation = self._resolved(parameter)
        except Exception as error:
            raise JobDefinitionError(
                f"{self._where}: the annotation of {parameter.name!r} cannot be read: {error}; "
                "import the model at run time (not under TYPE_CHECKING) and above the function"
            ) from error
        if annotation is _EMPTY:
            return None
        members = members_of(annotation)
        if members and all(_is_dict(each) for each in members):
            return None
        if members and all(_is_readable(each) or _is_dict(each) for each in members):
            return annotation
        raise JobDefinitionError(
            f"{self._where}: the payload {parameter.name!r} is annotated as {annotation!r}, which "
            f"is neither a pydantic model nor a dict, dataclass or TypedDict; {_FORMS}"
        )

    def reader(self, parameter: inspect.Parameter, model: Any) -> Reader:
        try:
            return Reader(model)
        except Exception as error:
            raise JobDefinitionError(
                f"{self._where}: the payload {parameter.name!r} cannot be read as {model!r}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _resolved(self, parameter: inspect.Parameter) -> Any:
        return resolved(self._base, parameter.name, parameter.annotation, self._names)


def _is_dict(annotation: Any) -> bool:
    if annotation in (Any, object):
        return True
    return (typing.get_origin(annotation) or annotation) in _DICTS


def _is_readable(annotation: Any) -> bool:
    """Whether JSON objects may be read as this type."""
    kind = typing.get_origin(annotation) or annotation
    if typing.is_typeddict(kind) or typing_extensions.is_typeddict(kind):
        return True
    if not isinstance(kind, type):
        return False
    return is_dataclass(kind) or (issubclass(kind, BaseModel) and kind is not BaseModel)
