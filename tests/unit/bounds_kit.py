"""Requests at the bounds of their fields, and the events that the engine makes of them.

Owns which values are the last that the door takes, and the first that it does not. Used by the
tests that hold door and sink to one bound.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final

import orjson

from tests.unit.core_kit import NOW
from tests.unit.partition_kit import (
    TOPICS,
    Input,
    Scene,
    outcome,
    outcomes,
    plain,
    request,
)
from tidemill.schemas.codec import Decoded, decode_request

LAST_MS: Final = round(datetime.fromisoformat("2299-12-31T00:00:00Z").timestamp() * 1000)


def nested(depth: int) -> dict[str, Any]:
    """An object so deep, itself included."""
    made: dict[str, Any] = {}
    for _ in range(depth - 1):
        made = {"in": made}
    return made


# Field -> what the door takes at its bounds, and what it does not beyond them.
TAKEN: Final[dict[str, list[Any]]] = {
    "job_id": ["j" * 256, "\U0001f409" * 256, "a/b%c\"\\", "\u2028"],
    "type": ["T" * 128, "a.b:c-d_e"],
    "queue": ["q" * 100],
    "run_at": [0, 1, -0, "1970-01-01T00:00:00Z", "2250-06-01T00:00:00Z", "2299-12-31T00:00:00Z",
               LAST_MS, "2200-12-31T23:59:59.999Z", "2201-01-01T00:00:00+14:00",
               "20990101T000000Z", "2099-W01-1T00:00:00Z", "2099-01-01T00:00:00.123456+00:30"],
    "expires_at": [0, 1, "2299-12-31T00:00:00Z", LAST_MS, "2250-01-01T00:00:00Z"],
    "unique_key": ["k" * 256],
    "max_attempts": [1, 100],
    "timeout_seconds": [1e-9, 0.001, 86_400, 86_400.0],
    "source": ["s" * 128, "\x00\x1b[31m", "\U0001f409" * 128],
    "tags": [[], ["t" * 128] * 32],
    "batch_id": ["b" * 256],
    "parent_job_id": ["p" * 256],
    "priority": ["high", "medium", "low"],
    "payload": [{}, nested(31), {"n": 2**64 - 1, "m": -(2**63)}, {"t": "x" * 600_000},
                {"f": 1e308, "s": 5e-324}, {"\u0000": "\x00"}, {"k": ["\U0001f409"] * 99}],
}
REFUSED: Final[dict[str, list[Any]]] = {
    "job_id": ["j" * 257, "", "a\nb"],
    "type": ["T" * 129, "", "a b"],
    "queue": ["q" * 101, ""],
    "run_at": [-1, "1969-12-31T23:59:59Z", "2299-12-31T00:00:01Z", LAST_MS + 1,
               "2300-01-01T00:00:00Z", "9999-12-31T23:59:59Z", 2**63, "0001-01-01T00:00:00+14:00"],
    "expires_at": [-1, LAST_MS + 1, "2300-01-01T00:00:00Z"],
    "unique_key": ["k" * 257],
    "max_attempts": [0, 101, 2**32],
    "timeout_seconds": [0, -1, 86_400.1, 1e308],
    "source": ["s" * 129, ""],
    "tags": [["t"] * 33, ["t" * 129], [""]],
    "batch_id": ["b" * 257],
    "parent_job_id": ["p" * 257],
    "priority": ["urgent"],
    "payload": [nested(32), {"n": 2**64}, {"m": -(2**63) - 1}],
}


def is_taken(value: bytes) -> bool:
    """Whether the door takes it."""
    return isinstance(decode_request(value, ()), Decoded)


def events_of_life(asked: Input, result: Any = None) -> list[bytes]:
    """Every event of a job that is asked for, tried, and then succeeds; and of its repeat."""
    scene = Scene(plain())
    made = scene.group(NOW, asked) + scene.group(NOW + 1, asked)
    for number in range(4):
        at = NOW + 10 + 40_000_000 * number
        for job in list(scene.state.jobs.values()):
            if job.epoch and not job.is_dead_letter:
                fate: dict[str, Any] = {"kind": "succeeded", "result": result}
                if number == 0:
                    fate = {"kind": "failed", "retry_after_ms": 2**62,
                            "error": {"code": "E" * 999, "message": "m" * 9_999}}
                told = outcome(job.key, "", epoch=job.epoch, started_at=2**62) | fate
                topic, pack = outcomes(told | {"result": "@"})
                # Deeper than orjson writes: a worker in another version may send it.
                pack = pack.replace(b'"@"', json.dumps(told.get("result")).encode())
                made += scene.group(at, (topic, pack))
        made += scene.group(at + 2_600_000_000)
    return [record[3] or b"" for record in made if record[0] == TOPICS.events]


def value_with(name: str, value: Any) -> Input:
    """A request with this field."""
    return TOPICS.requested, orjson.dumps(orjson.loads(request("j")[1]) | {name: value})
