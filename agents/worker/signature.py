"""What a handler's signature asks for: a payload model or a dict, and perhaps a context.

Owns the reading of annotations, also those that are text. Refuses to know what a handler does.
"""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from agents.worker.context import Context
from agents.worker.errors import JobDefinitionError

CONTEXT_NAME: Final = "ctx"
_FORMS: Final = (
    "write (payload) or (payload, ctx) with payload: YourModel or payload: dict"
)
_POSITIONAL: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)
_DICTS: Final = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


@dataclass(frozen=True, slots=True)
class Signature:
    """What the worker passes to a handler."""

    #: None: a dict.
    model: type[BaseModel] | None
    takes_context: bool


def place_of(function: Callable[..., Any]) -> str:
    """Name, file and line of a function, for people."""
    code = getattr(function, "__code__", None)
    if code is None:
        return f"{function!r}"
    return f"{function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"


def read_signature(
    where: str, function: Callable[..., Any], local_names: Mapping[str, Any]
) -> Signature:
    """Read and check; JobDefinitionError names what is wrong and the forms that work."""
    parameters = list(inspect.signature(function).parameters.values())
    positional = [each for each in parameters if each.kind in _POSITIONAL]
    extra = [
        each.name
        for each in parameters
        if each.kind is inspect.Parameter.KEYWORD_ONLY and each.default is each.empty
    ]
    extra += [each.name for each in positional[2:] if each.default is each.empty]
    if extra:
        raise JobDefinitionError(f"{where}: nobody passes the parameter {extra[0]!r}; {_FORMS}")
    if not positional:
        raise JobDefinitionError(f"{where}: it takes no payload; {_FORMS}")
    model = _payload_model(where, function, positional[0], local_names)
    takes_context = len(positional) > 1 and _is_context(
        where, function, positional[1], local_names
    )
    return Signature(model, takes_context)


def _annotation(
    function: Callable[..., Any], parameter: inspect.Parameter, local_names: Mapping[str, Any]
) -> Any:
    """The annotation of one parameter, as an object; NameError when a name is unknown.

    One at a time: a name that only type checkers import, in another place, must not matter.
    """
    if parameter.annotation is inspect.Parameter.empty:
        return inspect.Parameter.empty
    shim = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    hints = typing.get_type_hints(shim, function.__globals__, dict(local_names))
    return hints[parameter.name]


def _payload_model(
    where: str,
    function: Callable[..., Any],
    parameter: inspect.Parameter,
    local_names: Mapping[str, Any],
) -> type[BaseModel] | None:
    try:
        annotation = _annotation(function, parameter, local_names)
    except NameError as error:
        raise JobDefinitionError(
            f"{where}: the annotation of {parameter.name!r} cannot be read: {error}; import the "
            "model at run time (not under TYPE_CHECKING) and above the function"
        ) from error
    if annotation in (inspect.Parameter.empty, Any):
        return None
    origin = typing.get_origin(annotation) or annotation
    if origin in _DICTS:
        return None
    if annotation is Context or parameter.name == CONTEXT_NAME:
        raise JobDefinitionError(f"{where}: the first parameter is the payload; {_FORMS}")
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    raise JobDefinitionError(
        f"{where}: the payload {parameter.name!r} is annotated as {annotation!r}, which is neither "
        f"a pydantic model nor a dict; {_FORMS}"
    )


def _is_context(
    where: str,
    function: Callable[..., Any],
    parameter: inspect.Parameter,
    local_names: Mapping[str, Any],
) -> bool:
    if parameter.name == CONTEXT_NAME:
        return True
    try:
        annotation = _annotation(function, parameter, local_names)
    except NameError:
        annotation = inspect.Parameter.empty
    if annotation is Context:
        return True
    if parameter.default is not inspect.Parameter.empty:
        return False
    raise JobDefinitionError(
        f"{where}: the second parameter {parameter.name!r} is no context; name it {CONTEXT_NAME!r} "
        f"or annotate it with tidemill.Context; {_FORMS}"
    )
