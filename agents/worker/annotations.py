"""Annotations as objects, also those that are text or that only type checkers can import.

Owns the reading of one annotation. Refuses to know what it is for.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any


def resolved(
    function: Callable[..., Any], name: str, annotation: Any, local_names: Mapping[str, Any]
) -> Any:
    """One annotation of `function`, as an object; raises NameError when a name is unknown.

    One at a time: a name that only type checkers import, in another place, must not matter.
    """
    if annotation is inspect.Parameter.empty:
        return inspect.Parameter.empty
    shim = types.SimpleNamespace(__annotations__={name: annotation})
    names: dict[str, Any] = getattr(function, "__globals__", {})
    hints = typing.get_type_hints(shim, names, dict(local_names), include_extras=True)
    return hints[name]


def members_of(annotation: Any) -> list[Any]:
    """What an annotation allows: the members of a union, without None and `Annotated`."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return members_of(typing.get_args(annotation)[0])
    if origin is typing.Union or origin is types.UnionType:
        return [member for each in typing.get_args(annotation) for member in members_of(each)]
    if isinstance(annotation, typing.NewType):
        return members_of(annotation.__supertype__)
    return [] if annotation in (None, type(None)) else [annotation]
