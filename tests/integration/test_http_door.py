"""Both doors that answer HTTP, called over raw sockets by clients that mean harm or are slow."""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response

from tidemill.agents.api.main import ApiServer, build_api
from tidemill.agents.clickhouse.engine import Engine, open_engine
from tidemill.agents.clickhouse.port import ClickHousePort
from tidemill.agents.http_door import DoorLimits, DoorProtocol
from tidemill.agents.settings import ApiSettings

SECONDS = 20.0
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
SQL = b"SELECT 1"
ANSWER = re.compile(rb"HTTP/1\.1 [0-9]{3} ")


class HurriedDoor(DoorProtocol):
    """Bounds that a test can wait for."""

    limits = DoorLimits(
        head_seconds=0.6, body_silence_seconds=0.6, body_seconds=1.5, answer_stall_seconds=1.0,
        linger_seconds=0.2, connections_max=20,
    )


class Ports:
    """The numbers of the page's port and of ClickHouse's, over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._api = ApiServer(build_api(engine, ApiSettings()), "127.0.0.1", 0)
        self._api.start()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._port = ClickHousePort(engine, port=0)
        asyncio.run_coroutine_threadsafe(self._port.start(), self._loop).result(SECONDS)
        self.numbers = {"api": self._api.port, "clickhouse": int(self._port.url.split(":")[2])}

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._port.stop(), self._loop).result(SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()
        self._api.stop()


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    folder: Path = tmp_path_factory.mktemp("clickhouse")
    engine = open_engine(f"chdb://{folder}")
    running = Ports(engine)
    yield running.numbers
    running.stop()
    engine.close()


@pytest.fixture(params=["api", "clickhouse"])
def port(request: pytest.FixtureRequest, ports: dict[str, int]) -> int:
    return ports[request.param]


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=SECONDS)


def read_to_end(connection: socket.socket) -> bytes:
    """What came until the other side closed; fails when it does not close."""
    answer = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            answer += piece
    return bytes(answer)


def exchange(port: int, *pieces: bytes) -> bytes:
    with connect(port) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return read_to_end(connection)


SMUGGLED = b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n"
TWO_READINGS = {
    "length and chunked": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 8\r\nContent-Length: 3\r\n\r\nSELECT 1",
    "one length twice": b"Content-Length: 8\r\nContent-Length: 8\r\n\r\nSELECT 1",
    "signed length": b"Content-Length: +8\r\n\r\nSELECT 1",
    "folded": b"X: 1\r\n Content-Length: 8\r\n\r\n",
    "bare line feeds": b"Content-Length: 8\n\nSELECT 1",
    "odd coding": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "long headers": b"X: " + b"a" * 70_000 + b"\r\n\r\n",
    "many headers": b"X: a\r\n" * 500 + b"\r\n",
    "no end of headers": b"X: " + b"a" * 70_000,
    "bad chunk": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("head", TWO_READINGS.values(), ids=TWO_READINGS)
def test_a_request_with_two_readings_gets_400_and_the_end(port: int, head: bytes) -> None:
    answer = exchange(port, POST + head + SMUGGLED)
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b"\r\nconnection: close\r\n" in answer
    # Nothing behind it was read as a request of its own.
    assert len(ANSWER.findall(answer)) == 1


@pytest.mark.parametrize("cut", [1, 7, 16, 30])
def test_a_head_in_pieces_is_checked_as_a_whole(port: int, cut: int) -> None:
    whole = POST + TWO_READINGS["length and chunked"]
    assert exchange(port, whole[:cut], whole[cut:]).startswith(b"HTTP/1.1 400 ")


def test_what_hides_behind_a_body_is_not_answered(port: int) -> None:
    head = POST + b"Content-Type: text/plain\r\nContent-Length: 8\r\n\r\n"
    answer = exchange(port, head + SQL + SMUGGLED)
    assert len(ANSWER.findall(answer)) == 1


def test_an_answer_before_its_body_says_that_it_is_the_last(ports: dict[str, int]) -> None:
    head = b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
    answer = exchange(ports["api"], head + b"Content-Length: 9000000\r\n\r\n" + b"x" * 1_000)
    assert b" 415 " in answer.split(b"\r\n")[0]
    assert b"\r\nconnection: close\r\n" in answer.lower()
    # One whose body has come is not.
    with connect(ports["api"]) as connection:
        connection.sendall(
            b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2\r\n\r\n{}"
        )
        assert connection.recv(65_536).startswith(b"HTTP/1.1 422 ")
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_one_connection_serves_request_after_request(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client:
        for _ in range(3):
            assert client.post("/", content=SQL).status_code in (200, 405)
        with connect(port) as connection:
            for piece in (b"GET /", b"x HTTP/1.1\r\nHo", b"st: localhost\r\n", b"\r\n"):
                connection.sendall(piece)
            assert connection.recv(100).startswith(b"HTTP/1.1 404")


def test_a_chunked_body_is_read(ports: dict[str, int]) -> None:
    head = POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    answer = exchange(ports["clickhouse"], head, b"3\r\nSEL\r\n5\r\nEC", b"T 1\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n1\n")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "127.0.0.1.evil.example", "user@localhost", "evil.example@127.0.0.1",
        "localhost/x", "localhost?x", "localhost#x", "localhost:80:90", "localhost:x", "[::1", "",
        "localhost.evil.example", "2130706433", "localhost,evil.example", "*", "[::1]evil.example",
        "xn--lcalhost-54a", "0.0.0.0",
    ],
)
def test_odd_hosts_are_refused(port: int, host: str) -> None:
    ask = f"GET /?query=SELECT%201 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    answer = exchange(port, ask.encode())
    assert answer.split()[1] in (b"421", b"403", b"400", b"500"), answer
    assert b"not" in answer


# --- slow clients ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hurried() -> Iterator[int]:
    app = FastAPI()

    @app.post("/")
    async def echo(request: Request) -> Response:
        return Response(await request.body())

    @app.get("/large")
    async def large() -> Response:
        return Response(b"x" * 64_000_000)

    server = ApiServer(app, "127.0.0.1", 0, HurriedDoor)
    server.start()
    yield server.port
    server.stop()


HALF_OPEN: dict[str, bytes] = {
    "half a line": b"POST / HT",
    "half a head": POST + b"X-A: 1\r\n",
    "half a body": POST + b"Content-Length: 100\r\n\r\nabc",
    "half a chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    "expects more": POST + b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n",
}


@pytest.mark.parametrize("begun", HALF_OPEN.values(), ids=HALF_OPEN)
def test_a_half_open_request_is_told_and_closed(hurried: int, begun: bytes) -> None:
    answer = exchange(hurried, begun)
    assert b"HTTP/1.1 408 " in answer


def test_a_connection_that_asks_nothing_is_closed(hurried: int) -> None:
    assert exchange(hurried) == b""


@pytest.mark.parametrize(
    "begun", [POST, POST + b"Content-Length: 100000\r\n\r\n"], ids=["head", "body"]
)
def test_a_trickle_does_not_keep_a_connection(hurried: int, begun: bytes) -> None:
    with connect(hurried) as connection:
        connection.sendall(begun)
        connection.settimeout(0.1)
        answer = b""
        for _ in range(100):
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(100)
                break
            connection.sendall(b"a")
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_an_answer_that_nobody_reads_is_given_up(hurried: int) -> None:
    with connect(hurried) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        # Signalled by the other side's reset: nothing is read until then.
        poll = select.poll()
        poll.register(connection, 0)
        assert poll.poll(SECONDS * 1000), "the server still holds the answer"


def test_many_half_open_requests_leave_room_for_a_whole_one(hurried: int) -> None:
    begun = [connect(hurried) for _ in range(200)]
    try:
        for connection in begun:
            with contextlib.suppress(OSError):
                connection.sendall(HALF_OPEN["half a body"])
        answer = httpx.post(f"http://127.0.0.1:{hurried}/", content=b"hello", timeout=SECONDS)
        assert answer.content == b"hello"
        # All of them end.
        for connection in begun:
            read_to_end(connection)
    finally:
        for connection in begun:
            connection.close()


def test_a_body_that_comes_late_and_whole_is_read(hurried: int) -> None:
    with connect(hurried) as connection:
        connection.sendall(POST + b"Content-Length: 200000\r\nConnection: close\r\n\r\n")
        for _ in range(20):
            connection.sendall(b"a" * 10_000)
        assert read_to_end(connection).endswith(b"a" * 200_000)


def test_a_stopped_server_does_not_wait_for_half_requests() -> None:
    app: Any = FastAPI()
    server = ApiServer(app, "127.0.0.1", 0)
    server.start()
    with connect(server.port) as connection:
        connection.sendall(HALF_OPEN["half a body"])
        with connect(server.port) as other:
            other.sendall(HALF_OPEN["half a head"])
            server.stop()
            assert read_to_end(other) == b""
    assert not server.is_alive()
