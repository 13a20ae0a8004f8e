"""JSON Schemas (2020-12) of every record that others may write or read: docs/schemas/*.json.

Owns the file names and the few corrections where a model takes more than pydantic tells. Refuses to
know topics.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

from pydantic import BaseModel

from tidemill.schemas import SCHEMA_VERSION
from tidemill.schemas.dead import HEADER_MEANINGS
from tidemill.schemas.events import CompletedJob, JobEvent
from tidemill.schemas.requests import Command, JobRequest, SignalCommand
from tidemill.schemas.wire import Definition, Heartbeat

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
ID_PREFIX: Final = "urn:tidemill:schema:"
FOLDER: Final = "docs/schemas"
DEAD_REQUIRED: Final = (
    "tidemill.dead.topic", "tidemill.dead.partition", "tidemill.dead.offset",
    "tidemill.dead.timestamp", "tidemill.dead.stage", "tidemill.dead.error.code",
    "tidemill.dead.error.message",
)

Mode = Literal["validation", "serialization"]
MODELS: Final[dict[str, tuple[type[BaseModel], Mode]]] = {
    "job-request": (JobRequest, "validation"),
    "command": (Command, "validation"),
    "signal-command": (SignalCommand, "validation"),
    "job-event": (JobEvent, "serialization"),
    "completed-job": (CompletedJob, "serialization"),
    "definition": (Definition, "serialization"),
    "heartbeat": (Heartbeat, "serialization"),
}
"""File name -> model, and whether it is what we take or what we give."""

RETRY: Final[dict[str, Any]] = {
    "title": "RetryScheduled",
    "description": "One record on `jobs.retry`; key = user_id. News: the timer is in the ledger.",
    "type": "object",
    "properties": {
        "job_id": {"type": "string"},
        "user_id": {"type": "string"},
        "type": {"type": "string"},
        "queue": {"type": "string"},
        "run": {"type": "integer", "description": "1, and one more with each redrive."},
        "attempt": {"type": "integer", "description": "The attempt that failed."},
        "max_attempts": {"type": "integer"},
        "error": {
            "description": "Why it failed: code, message, retryable.",
            "anyOf": [{"type": "object"}, {"type": "null"}],
        },
        "due_at": {
            "description": "When the next attempt may begin, RFC 3339.",
            "anyOf": [{"type": "string"}, {"type": "null"}],
        },
        "schema_version": {"type": "integer"},
    },
}
RETRY["required"] = list(RETRY["properties"])


def dead_letter_headers() -> dict[str, Any]:
    """The headers of a record on `jobs.dead`, as an object of strings."""
    return {
        "title": "DeadLetterHeaders",
        "description": "Headers that a dead letter carries beside the original ones.",
        "type": "object",
        "properties": {
            name: {"type": "string", "description": meaning}
            for name, meaning in HEADER_MEANINGS.items()
        },
        "required": list(DEAD_REQUIRED),
    }


def schema_of(name: str) -> dict[str, Any]:
    """The schema of one model, corrected."""
    model, mode = MODELS[name]
    schema = model.model_json_schema(mode=mode)
    _take_epoch_ms(schema)
    return schema


def all_schemas() -> dict[str, dict[str, Any]]:
    """Name -> schema, of every file."""
    found = {name: schema_of(name) for name in MODELS}
    return found | {"retry-scheduled": RETRY, "dead-letter-headers": dead_letter_headers()}


def _take_epoch_ms(node: Any) -> None:
    """Instants come as text or as epoch milliseconds; pydantic sees the text only."""
    if isinstance(node, list):
        for item in node:
            _take_epoch_ms(item)
    if not isinstance(node, dict):
        return
    choices = node.get("anyOf")
    if isinstance(choices, list) and {"type": "string", "format": "date-time"} in choices:
        choices.insert(1, {"type": "integer", "description": "Epoch milliseconds."})
    for value in node.values():
        _take_epoch_ms(value)


def render() -> dict[str, str]:
    """Path -> text."""
    files = {}
    for name, schema in all_schemas().items():
        document = {"$schema": DIALECT, "$id": f"{ID_PREFIX}{name}:{SCHEMA_VERSION}", **schema}
        text = json.dumps(document, indent=2, ensure_ascii=False)
        files[f"{FOLDER}/{name}.json"] = text + "\n"
    return files
