"""Messages between a worker and its child processes: four bytes of length, then JSON.

Owns the frame and the names of the messages. Refuses to know what is done with them.

To the child: {"job": ...} runs one attempt, {"cancel": true} tells it to stop, {"kept": number}
that a word of its handler is durable.
From the child: {"ready": true} or {"broken": why} once, then {"progress": ...}, {"word": ...,
"number": ...} and {"end": ...}.
"""

from __future__ import annotations

import socket
from typing import Any, Final

import orjson

LENGTH_BYTES: Final = 4


def frame(message: dict[str, Any]) -> bytes:
    """The bytes of one message."""
    body = orjson.dumps(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """The next message of a blocking socket; None when the other side is gone."""
    length = _exactly(connection, LENGTH_BYTES)
    if length is None:
        return None
    body = _exactly(connection, int.from_bytes(length, "big"))
    if body is None:
        return None
    message: dict[str, Any] = orjson.loads(body)
    return message


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    parts: list[bytes] = []
    while count:
        try:
            part = connection.recv(min(count, 1 << 20))
        except OSError:
            return None
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
