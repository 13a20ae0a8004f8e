"""The API's description as a page: what /openapi.json says, for people.

Owns the way from an OpenAPI document to the values of a template. Refuses to know the routes: what
is not in the document is not on the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

METHODS: Final = ("get", "post", "put", "patch", "delete")
DEPTH_MAX: Final = 6  # of references in references; contracts of ours are flatter


@dataclass(frozen=True, slots=True)
class Value:
    """A parameter, or a field of a body."""

    name: str
    place: str
    kind: str
    is_required: bool
    meaning: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What may come back."""

    status: str
    meaning: str
    fields: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    anchor: str
    summary: str
    meaning: str
    parameters: tuple[Value, ...]
    body: tuple[Value, ...]
    answers: tuple[Answer, ...]
    example: str = field(default="")


def operations(document: Mapping[str, Any], origin: str) -> list[Operation]:
    """Every operation of the document, in its order. `origin` stands in the examples."""
    found = []
    for path, item in document.get("paths", {}).items():
        for method in METHODS:
            if method in item:
                found.append(_operation(document, origin, path, method, item[method]))
    return found


def _operation(
    document: Mapping[str, Any], origin: str, path: str, method: str, told: Mapping[str, Any]
) -> Operation:
    parameters = tuple(
        Value(
            each["name"], each["in"], _kind(document, each.get("schema", {})),
            bool(each.get("required")), _meaning(each) or _meaning(each.get("schema", {})),
        )
        for each in told.get("parameters", ())
    )
    body = _fields(document, _json_schema(told.get("requestBody", {})))
    answers = tuple(
        Answer(status, str(answer.get("description", "")),
               _fields(document, _json_schema(answer)))
        for status, answer in told.get("responses", {}).items()
    )
    return Operation(
        method=method.upper(), path=path, anchor=f"{method}{path}".replace("/", "-").strip("-"),
        summary=str(told.get("summary", "")), meaning=_meaning(told), parameters=parameters,
        body=body, answers=answers, example=_example(origin, path, method, parameters, body),
    )


def _json_schema(told: Mapping[str, Any]) -> Mapping[str, Any]:
    content = told.get("content", {})
    schema: Mapping[str, Any] = content.get("application/json", {}).get("schema", {})
    return schema


def _meaning(told: Mapping[str, Any]) -> str:
    return str(told.get("description", "")).strip()


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    for _ in range(DEPTH_MAX):
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            break
        target: Any = document
        for word in reference.removeprefix("#/").split("/"):
            target = target.get(word, {})
        schema = target
    return schema


def _fields(document: Mapping[str, Any], schema: Mapping[str, Any]) -> tuple[Value, ...]:
    resolved = _resolved(document, schema)
    required = set(resolved.get("required", ()))
    return tuple(
        Value(name, "body", _kind(document, told), name in required, _meaning(told))
        for name, told in resolved.get("properties", {}).items()
    )


def _kind(document: Mapping[str, Any], schema: Mapping[str, Any], depth: int = 0) -> str:
    """A schema in a few words: "text, at most 256 characters", "list of objects"."""
    if depth > DEPTH_MAX:
        return "any"
    schema = _resolved(document, schema)
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            kinds = [_kind(document, each, depth + 1) for each in schema[word]]
            return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return ", ".join(str(each) for each in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_kind(document, schema.get('items', {}), depth + 1)}"
    bounds = [
        f"{word} {schema[key]}"
        for key, word in (
            ("minimum", "from"), ("exclusiveMinimum", "more than"), ("maximum", "to"),
            ("minLength", "at least"), ("maxLength", "at most"),
        )
        if key in schema
    ]
    if "default" in schema and schema["default"] not in (None, ""):
        bounds.append(f"default {schema['default']}")
    return ", ".join([{"string": "text", "null": "none"}.get(str(kind), str(kind)), *bounds])


def _example(
    origin: str, path: str, method: str, parameters: tuple[Value, ...], body: tuple[Value, ...]
) -> str:
    needed = [each for each in parameters if each.place == "query" and each.is_required]
    query = "?" + "&".join(f"{each.name}=…" for each in needed) if needed else ""
    line = f"curl {'' if method == 'get' else f'-X {method.upper()} '}'{origin}{path}{query}'"
    if not body:
        return line
    values = ", ".join(f'"{each.name}": …' for each in body if each.is_required)
    return f"{line} \\\n  -H 'Content-Type: application/json' -d '{{{values}}}'"
