"""The doors that answer HTTP: what a request must look like, and how long and how many may wait.

Owns the strict reading of a request's head before uvicorn's parser sees it, the bounds in time of
head, body and answer, and the bound on connections. Refuses to know routes, tokens and SQL.

uvicorn's parser is lenient where servers in a row may disagree about where a request ends (request
smuggling), and neither it nor its server bounds how long a request may take to arrive.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

LINE_BYTES_MAX: Final = 16_384  # of the request line; an address of ours is far shorter
HEADER_BYTES_MAX: Final = 16_384  # of all headers together; cookies of other ports of localhost too
HEADERS_MAX: Final = 100  # a browser sends about 20
HEAD_SECONDS: Final = 10.0  # from the first byte of a head, or the connection, to its end
BODY_SILENCE_SECONDS: Final = 10.0  # between two pieces of a body
BODY_SECONDS: Final = 60.0  # a whole body; the largest is 1 MB
ANSWER_STALL_SECONDS: Final = 30.0  # a reader must take this much of an answer in this time
ANSWER_BYTES_MIN: Final = 65_536  # bytes, or all that is left
LINGER_SECONDS: Final = 2.0  # what still comes is read for this long, so that the answer arrives
CONNECTIONS_MAX: Final = 256  # of one port; a browser opens six, and a process has 1,024 files
SWEEP_TICKS: Final = 5  # ticks of uvicorn's server (0.1 s) between two looks at the connections
TOLD_SECONDS: Final = 10.0  # between two lines of log about connections that were closed

_BARE_END: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_HEAD_END: Final = b"\r\n\r\n"
_REASONS: Final = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}

logger = logging.getLogger("tidemill.http")


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """Bounds of one port; sizes in bytes, times in seconds."""

    line_bytes_max: int = LINE_BYTES_MAX
    header_bytes_max: int = HEADER_BYTES_MAX
    headers_max: int = HEADERS_MAX
    head_seconds: float = HEAD_SECONDS
    body_silence_seconds: float = BODY_SILENCE_SECONDS
    body_seconds: float = BODY_SECONDS
    answer_stall_seconds: float = ANSWER_STALL_SECONDS
    linger_seconds: float = LINGER_SECONDS
    connections_max: int = CONNECTIONS_MAX


def size_fault(data: bytes | bytearray, limits: DoorLimits) -> str | None:
    """Why the head, whole or so far, is too long; None when it is not."""
    line_end = data.find(b"\r\n")
    line = len(data) if line_end < 0 else line_end
    if line > limits.line_bytes_max:
        return f"the request line is longer than {limits.line_bytes_max} bytes"
    if len(data) - line > limits.header_bytes_max + len(_HEAD_END):
        return f"the headers are longer than {limits.header_bytes_max} bytes"
    return None


def early_fault(part: bytes | bytearray) -> str | None:
    """What is wrong with the beginning of a head already; None when nothing is yet."""
    if part[:1] < b"!":
        return "this is no request of HTTP/1.1"  # such as the beginning of TLS
    if _BARE_LF.search(part):
        return "a line must end with CR LF"
    return None


def head_fault(head: bytes, limits: DoorLimits) -> str | None:
    """What is wrong with a whole head, without its last empty line; None when nothing is."""
    if _BARE_END.search(head):
        return "a line must end with CR LF, and neither may stand alone"
    if _CONTROL.search(head):
        return "a head must not hold control characters"
    line, *headers = head.split(b"\r\n")
    if len(headers) > limits.headers_max:
        return f"there are more than {limits.headers_max} headers"
    words = line.split(b" ")
    if len(words) != 3 or words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        return "the first line must be: METHOD /path HTTP/1.1"
    if not words[1].startswith(b"/") and words[:2] != [b"OPTIONS", b"*"]:
        return "the address must begin with /"
    return _headers_fault(headers, is_old=words[2] == b"HTTP/1.0")


def _headers_fault(headers: list[bytes], *, is_old: bool) -> str | None:
    if any(line[:1] in (b" ", b"\t") for line in headers):
        return "a header must stand on one line"
    split = (line.partition(b":") for line in headers)
    pairs = [(name.lower(), value.strip()) for name, _, value in split]
    lengths = [value for name, value in pairs if name == b"content-length"]
    codings = [value for name, value in pairs if name == b"transfer-encoding"]
    hosts = [value for name, value in pairs if name == b"host"]
    if len(lengths) > 1 or any(not _is_number(length) for length in lengths):
        return "Content-Length must stand once and be a number"
    if codings and lengths:
        return "send either Content-Length or Transfer-Encoding, not both"
    if codings and (is_old or [coding.lower() for coding in codings] != [b"chunked"]):
        return "Transfer-Encoding must stand once, be chunked, and is for HTTP/1.1"
    if len(hosts) > 1 or (not hosts and not is_old):
        return "Host must stand once"
    return None


def _is_number(text: bytes) -> bool:
    return text.isdigit() and len(text) <= 15


class DoorProtocol(H11Protocol):
    """One connection. Heads are checked here, then uvicorn goes on with them.

    One request is read after another: what a client sends ahead of the answer (pipelining) is not
    read, and the connection ends with the answer. No client of today does that, and a request that
    hides behind another one's body is the aim of smuggling.
    """

    limits: ClassVar[DoorLimits] = DoorLimits()

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head = bytearray()
        self._is_ending = False
        self._left_bytes = 0  # of the answer, when `_left_at` was set
        now = self.loop.time()
        self.since = now  # when the phase began that the connection is in
        self._heard_at = now
        self._left_at = now

    # -- what uvicorn calls --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections_max and not self._make_room():
            self._refuse(503, "too many connections; ask again later")

    def data_received(self, data: bytes) -> None:
        if self._is_ending:
            return
        self._heard_at = self.loop.time()
        if self.conn.their_state is not h11.IDLE:
            super().data_received(data)
            self._note_phase()
            return
        self._unset_keepalive_if_required()
        if not self._head:
            self.since = self._heard_at
        self._head += data
        self._take_head()

    def _take_head(self) -> None:
        end = self._head.find(_HEAD_END)
        part = self._head if end < 0 else self._head[:end]
        fault = size_fault(part, self.limits)
        if fault is None:
            is_whole = end >= 0
            fault = head_fault(bytes(part), self.limits) if is_whole else early_fault(part)
        if fault is not None:
            self._refuse(400, fault)
        elif end >= 0:
            whole, self._head = bytes(self._head), bytearray()
            super().data_received(whole)
            self._note_phase()

    def _note_phase(self) -> None:
        if self.conn.their_state is not h11.SEND_BODY:
            self.since = self.loop.time()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's parser found a fault that the checks of the head do not know."""
        self._refuse(400, msg)

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        is_more = self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]
        if is_more and not self.transport.is_closing():
            # Answered before the body was there, or more was sent ahead.
            self.server_state.total_requests += 1
            self._end()
            return
        super().on_response_complete()

    def shutdown(self) -> None:
        """The server stops: only what is being answered is waited for."""
        if self._is_ending or self.is_waiting:
            self._forget_cycle()
            self.transport.close()
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        self._left_at, self._left_bytes = self.loop.time(), self._unsent()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._left_at, self._left_bytes = self.loop.time(), self._unsent()
        super().resume_writing()

    # -- bounds --------------------------------------------------------------------------------

    @property
    def is_waiting(self) -> bool:
        """Whether the next word is the client's: a head or a body has not come yet."""
        return not self._is_ending and self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    @property
    def _is_idle(self) -> bool:
        return self.is_waiting or (self._is_ending and not self.transport.is_closing())

    def sweep(self, now: float) -> str | None:
        """End what is overdue; why, or None."""
        if self._is_stalled(now):
            self._abort()
            return "an answer that nobody reads"
        if self._is_ending or self.transport.is_closing():
            return None
        overdue = self._overdue(now)
        if overdue is not None and self.conn.their_state is h11.IDLE and not self._head:
            self._end()  # it never asked, so nobody waits for an answer
        elif overdue is not None:
            self._refuse(408, f"{overdue} took too long")
        return overdue

    def _is_stalled(self, now: float) -> bool:
        left, before = self._unsent(), self._left_bytes
        if left == 0 or before == 0 or left <= before - ANSWER_BYTES_MIN:
            self._left_at, self._left_bytes = now, left
        return now - self._left_at > self.limits.answer_stall_seconds

    def _overdue(self, now: float) -> str | None:
        limits = self.limits
        if self.conn.their_state is h11.SEND_BODY:
            is_silent = now - self._heard_at > limits.body_silence_seconds
            is_slow = now - self.since > limits.body_seconds
            return "a body" if is_silent or is_slow else None
        if self.conn.their_state is not h11.IDLE or self.timeout_keep_alive_task is not None:
            return None
        return "a head" if now - self.since > limits.head_seconds else None

    def _make_room(self) -> bool:
        """Close the one that has made us wait longest; False when all are being answered."""
        others = (one for one in self.connections if one is not self)
        idle = [one for one in others if isinstance(one, DoorProtocol) and one._is_idle]
        if not idle:
            return False
        # Those that have had their answer go first.
        oldest = min(idle, key=lambda one: (not one._is_ending, one.since))
        oldest._forget_cycle()
        oldest._is_ending = True
        oldest._abort()
        return True

    def _unsent(self) -> int:
        return self.transport.get_write_buffer_size()

    # -- ends ----------------------------------------------------------------------------------

    def _refuse(self, status: int, reason: str) -> None:
        """Say why, unless an answer is on its way already, and end the connection."""
        cycle: RequestResponseCycle | None = self.cycle
        is_answering = (
            cycle is not None and cycle.response_started and not cycle.response_complete
        )
        self._forget_cycle()
        if is_answering:
            self._is_ending = True
            self._abort()
            return
        body = f"{reason}\n".encode()
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._end()

    def _forget_cycle(self) -> None:
        """Whoever waits for the rest of this request learns that it will not come."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def _end(self) -> None:
        """Read on for a moment: a close with unread bytes would take the answer away with it."""
        self._is_ending = True
        self._head.clear()
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(self.limits.linger_seconds, self._close)

    def _abort(self) -> None:
        """End it with a reset: the system would hold what was not read for minutes."""
        plain = self.transport.get_extra_info("socket")
        if plain is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _close(self) -> None:
        # An answer that is still on its way has until the sweep finds it stalled.
        self.transport.close()


class DoorServer(uvicorn.Server):
    """uvicorn's server for `DoorProtocol`: it looks at all connections every half a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._closed = 0
        self._told_at = float("-inf")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None: the process that hosts the door owns the signals."""
        yield

    async def on_tick(self, counter: int) -> bool:
        if counter % SWEEP_TICKS == 0:
            self._sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    def _sweep(self, now: float) -> None:
        found = [
            one.sweep(now)
            for one in list(self.server_state.connections) if isinstance(one, DoorProtocol)
        ]
        self._closed += sum(why is not None for why in found)
        if self._closed and now - self._told_at > TOLD_SECONDS:
            logger.warning("closed %d connections that were too slow", self._closed)
            self._closed, self._told_at = 0, now


class ToldEnds:
    """The application, whose answers say so when the connection ends with them.

    An answer that comes before the body was there is the last one of its connection. A client that
    is not told would send its next request into the closing connection.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not _has_body(scope["headers"]):
            await self._app(scope, receive, send)
            return
        is_whole = False

        async def receive_and_note() -> Any:
            nonlocal is_whole
            message = await receive()
            is_whole = message["type"] == "http.request" and not message.get("more_body", False)
            return message

        async def send_and_tell(message: Any) -> None:
            if message["type"] == "http.response.start" and not is_whole:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive_and_note, send_and_tell)


def _has_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0")
        for name, value in headers
    )


def door_config(app: Any, door: type[DoorProtocol] = DoorProtocol, **more: Any) -> uvicorn.Config:
    """uvicorn's settings for a door of ours."""
    return uvicorn.Config(
        ToldEnds(app),
        http=door,
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        # Names and schemes that a stranger claims in X-Forwarded-* are not believed.
        proxy_headers=False,
        # The head is checked before it gets there, so this bound is for a chunk's line only.
        h11_max_incomplete_event_size=door.limits.line_bytes_max + door.limits.header_bytes_max + 4,
        **more,
    )
