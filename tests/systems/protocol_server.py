"""A server that speaks the protocol of chat completions and does what a test says.

Owns the wire: JSON answers, server-sent events, faults of both, delays. Each model's name has a
script: a function from the request's body to what is said. Refuses to judge anything.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What is said. `pieces`: a stream; `is_cut` ends it, or the body, before its end."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    usage: dict[str, Any] | None = field(
        default_factory=lambda: {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    )
    pieces: tuple[str, ...] = ()
    delay_seconds: float = 0.0  # before the first byte, and between pieces
    is_cut: bool = False
    raw: bytes | None = None  # a body that is no answer


Script = Callable[[dict[str, Any]], Answer]


class ProtocolServer:
    """What was asked, and the scripts. A model without a script is unknown: 404."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.asked: Counter[str] = Counter()
        self.is_closing = threading.Event()
        self._lock = threading.Lock()
        self.url = ""

    def says(self, model: str, *answers: Answer) -> None:
        """These answers in turn; the last one again and again."""
        left = list(answers)

        def script(body: dict[str, Any]) -> Answer:
            with self._lock:
                return left.pop(0) if len(left) > 1 else left[0]

        self.scripts[model] = script

    def take(self, body: dict[str, Any], key: str | None) -> Answer:
        model = str(body.get("model"))
        with self._lock:
            self.bodies.append(body)
            self.keys.append(key)
            self.asked[model] += 1
        script = self.scripts.get(model)
        if script is None:
            return Answer(status=404, raw=b'{"error": {"message": "no such model"}}')
        return script(body)


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True
    protocol: ProtocolServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self._send(200, {}, b'{"status": "ok"}')

    def do_POST(self) -> None:
        told = self.server.protocol
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = told.take(body, self.headers.get("Authorization"))
        self._pause(answer)
        try:
            if answer.pieces:
                self._stream(answer)
            else:
                self._say(body, answer)
        except OSError:
            self.close_connection = True  # the client went away, as some tests want

    def _pause(self, answer: Answer) -> None:
        if answer.delay_seconds:
            self.server.protocol.is_closing.wait(answer.delay_seconds)

    def _say(self, body: dict[str, Any], answer: Answer) -> None:
        if answer.raw is not None:
            data = answer.raw
        elif answer.status >= 400:
            data = json.dumps({"error": {"message": answer.text or "as told"}}).encode()
        else:
            message = {"role": "assistant", "content": answer.text}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            said: dict[str, Any] = {"object": "chat.completion", "model": body["model"]}
            said["choices"] = [choice]
            if answer.usage is not None:
                said["usage"] = answer.usage
            data = json.dumps(said).encode()
        self._send(answer.status, answer.headers, data, is_cut=answer.is_cut)

    def _send(
        self, status: int, headers: dict[str, str], data: bytes, *, is_cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if is_cut else data)
        self.close_connection = self.close_connection or is_cut

    def _stream(self, answer: Answer) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for piece in answer.pieces:
            self._event({"choices": [{"index": 0, "delta": {"content": piece}}]})
            self._pause(answer)
        if answer.is_cut:
            return
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], "usage": answer.usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.flush()


@contextmanager
def protocol_server(port: int = 0) -> Iterator[ProtocolServer]:
    """Serves on loopback until the block ends."""
    told = ProtocolServer()
    server = _Server(("127.0.0.1", port), _Handler)
    server.protocol = told
    told.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield told
    finally:
        told.is_closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
