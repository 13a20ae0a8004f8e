"""docs/asyncapi.yaml: the public topics in AsyncAPI 3.

Owns channels, messages and bindings. Refuses to know fields: the schemas are those of
`json_schemas`, moved to `components`, since AsyncAPI resolves references from the root.
"""

from __future__ import annotations

import json
from typing import Any, Final

import yaml

from tidemill.schemas import SCHEMA_VERSION
from tidemill.schemas.topics import Topics, TopicSpec
from tools.generate.json_schemas import all_schemas

HEAD: Final = (
    "# Written by `make docs` from schemas/; a test keeps it fresh. Change the code, not this.\n"
)
KAFKA_BINDING: Final = "0.5.0"
CLOUDEVENT_HEADERS: Final = {
    "ce_specversion": '"1.0".',
    "ce_id": "jobs.requested: becomes job_id where the body has none. jobs.completed: event_id.",
    "ce_source": "jobs.requested: becomes source where the body has none.",
    "ce_type": "jobs.requested: becomes type where the body has none.",
    "ce_time": "Instant, RFC 3339.",
    "ce_subject": "jobs.completed: the job_id.",
    "content-type": "application/json, or application/cloudevents+json for the structured mode.",
    "traceparent": "W3C trace context, kept through retries.",
}
# Topic -> (name of the message, schema of the value, schema of the headers, what we do).
MESSAGES: Final = {
    "requested": ("JobRequest", "JobRequest", "RequestHeaders", "receive"),
    "commands": ("Command", "Command", None, "receive"),
    "events": ("JobEvent", "JobEvent", None, "send"),
    "completed": ("CompletedJob", "CompletedJob", "CompletedHeaders", "send"),
    "retry": ("RetryScheduled", "RetryScheduled", None, "send"),
    "dead": ("DeadLetter", None, "DeadLetterHeaders", "send"),
}
# Topic -> schemas of other messages on it; each is called as its schema.
OTHERS: Final = {"commands": ("SignalCommand",)}


def _names(topic: str) -> tuple[str, ...]:
    """The messages of a topic."""
    return (MESSAGES[topic][0], *OTHERS.get(topic, ()))


def document() -> dict[str, Any]:
    """The whole description."""
    specs = {spec.name.removeprefix("jobs."): spec for spec in Topics().fixed() if spec.is_public}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tidemill",
            "version": f"{SCHEMA_VERSION}.0.0",
            "description": "Ask for jobs on jobs.requested, read their ends on jobs.completed with "
            "isolation.level=read_committed.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "dev": {
                "host": "127.0.0.1:9092",
                "protocol": "kafka",
                "description": "The broker of `tidemill dev`.",
            }
        },
        "channels": {name: _channel(name, specs[name]) for name in MESSAGES},
        "operations": {
            _operation_name(name): _operation(name, action)
            for name, (_, _, _, action) in MESSAGES.items()
        },
        "components": {
            "messages": {
                message: _message(topic, message)
                for topic in MESSAGES for message in _names(topic)
            },
            "schemas": _schemas(),
        },
    }


def _channel(name: str, spec: TopicSpec) -> dict[str, Any]:
    config = {
        "cleanup.policy": [spec.config["cleanup.policy"]],
        "retention.ms": int(spec.config["retention.ms"]),
        "max.message.bytes": int(spec.config["max.message.bytes"]),
    }
    return {
        "address": spec.name,
        "description": f"{spec.meaning} Key: {spec.key}.",
        "messages": {
            message: {"$ref": f"#/components/messages/{message}"} for message in _names(name)
        },
        "bindings": {
            "kafka": {
                "topic": spec.name,
                "topicConfiguration": config,
                "bindingVersion": KAFKA_BINDING,
            }
        },
    }


def _operation_name(name: str) -> str:
    return {"requested": "takeRequests", "commands": "takeCommands"}.get(
        name, f"tell{name.capitalize()}"
    )


def _operation(name: str, action: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [
            {"$ref": f"#/channels/{name}/messages/{message}"} for message in _names(name)
        ],
    }


def _message(topic: str, title: str) -> dict[str, Any]:
    first, payload, headers, _ = MESSAGES[topic]
    if title != first:
        payload = title
    message: dict[str, Any] = {"name": title, "title": title}
    if payload is not None:
        message["payload"] = {"$ref": f"#/components/schemas/{payload}"}
    else:
        message["description"] = (
            "Key, value and headers as they were in the original record; for a failed job its "
            "last event."
        )
    if headers is not None:
        message["headers"] = {"$ref": f"#/components/schemas/{headers}"}
    key = {"type": "string", "description": "user_id; for dead letters as it was."}
    message["bindings"] = {"kafka": {"key": key, "bindingVersion": KAFKA_BINDING}}
    return message


def _headers(*names: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            name: {"type": "string", "description": CLOUDEVENT_HEADERS[name]} for name in names
        },
    }


def _schemas() -> dict[str, Any]:
    wanted = {payload for _, payload, _, _ in MESSAGES.values()} | {"DeadLetterHeaders"}
    wanted |= {name for names in OTHERS.values() for name in names}
    flat: dict[str, Any] = {}
    for schema in all_schemas().values():
        if schema["title"] in wanted:
            _flatten(schema, flat)
    flat["RequestHeaders"] = _headers(
        "ce_specversion", "ce_id", "ce_source", "ce_type", "content-type", "traceparent"
    )
    flat["CompletedHeaders"] = _headers(
        "ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "ce_subject", "content-type"
    )
    return dict(sorted(flat.items()))


def _flatten(schema: dict[str, Any], into: dict[str, Any]) -> None:
    text = json.dumps(schema).replace("#/$defs/", "#/components/schemas/")
    moved: dict[str, Any] = json.loads(text)
    into.update(moved.pop("$defs", {}))
    into[moved["title"]] = moved


class _Dumper(yaml.SafeDumper):
    """Writes every value out: anchors are hard to read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def render() -> str:
    """The YAML text."""
    body: str = yaml.dump(
        document(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )
    return HEAD + body


