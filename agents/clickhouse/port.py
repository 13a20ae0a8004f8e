"""ClickHouse's HTTP interface, read-only, over an engine: what clients of a laptop's stack talk to.

Owns the reading of a request as ClickHouse reads it (query in the address or the body, parameters,
formats, encodings), the limits of a query, and the answer's headers. It refuses to judge SQL
(`guard` does), and it knows no table. Sessions, users and quotas are accepted and ignored; when a
password is set, it must come in one of ClickHouse's four ways.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import socket
import uuid
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import orjson
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tidemill.agents.callers import family_of, is_from_another_page, is_loopback, name_called
from tidemill.agents.clickhouse import wire
from tidemill.agents.clickhouse.engine import Engine, EngineError, QueryOutput
from tidemill.agents.clickhouse.guard import DEFAULT_DATABASE, SQL_BYTES_MAX, Guard
from tidemill.agents.clickhouse.port_settings import PortLimits, SettingsPolicy
from tidemill.agents.http_door import DoorLimits, DoorProtocol, DoorServer, door_config

DEFAULT_PORT = 8123
DEFAULT_FORMAT = "TabSeparated"
DISPLAY_NAME = "tidemill"
BODY_BYTES_MAX = 4 * SQL_BYTES_MAX
"""A form with parameters may be longer than its query, but not without a bound."""
ARGUMENTS_MAX = 1_000
"""Arguments in an address: parameters of a long list of ids, and no more."""
STOP_TIMEOUT_SECONDS = 5

_A = TypeVar("_A")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class _Ask:
    """A request as ClickHouse reads it."""

    sql: str
    database: str
    fmt: str
    params: dict[str, str]
    settings: dict[str, str]
    query_id: str
    encoding: str | None
    is_block_compressed: bool
    is_hello: bool
    """clickhouse-go's first question, whose answer has a form of its own (wire.hello_block)."""


@dataclass(frozen=True, slots=True)
class _Answer:
    body: bytes
    headers: dict[str, str]


class PortDoor(DoorProtocol):
    """Questions may stand in the address, so a request line may be as long as a question."""

    limits = DoorLimits(line_bytes_max=SQL_BYTES_MAX)


class ClickHousePort:
    """The interface on one address: `start` returns when it serves, `stop` when it has ended."""

    def __init__(
        self,
        engine: Engine,
        *,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        limits: PortLimits | None = None,
        password: str | None = None,
        allowed_hosts: Collection[str] = (),
        door: type[DoorProtocol] = PortDoor,
    ):
        if not is_loopback(host) and not password:
            raise EngineError(
                f"ClickHouse port on {host}: set a password, or bind it to 127.0.0.1; anyone who "
                "reaches it could read every job"
            )
        self._host = host
        self._port = port
        self._password = password
        self._allowed_hosts = frozenset(allowed_hosts)
        self._door = door
        self._engine = engine
        self._limits = limits or PortLimits()
        self._guard = Guard(engine)
        self._policy = SettingsPolicy(engine, self._limits)
        self._timezone = self._version = ""
        self._threads = ThreadPoolExecutor(self._limits.queries_max, "clickhouse-port")
        self._in_flight = 0
        self._server: DoorServer | None = None
        self._serving: asyncio.Task[None] | None = None
        self.app = Starlette(
            routes=[
                Route("/ping", self._ping, methods=["GET", "HEAD"]),
                Route("/replicas_status", self._ping, methods=["GET", "HEAD"]),
                Route("/", self._query, methods=["GET", "HEAD", "POST"]),
            ]
        )

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    async def start(self) -> None:
        """Binds and serves in this event loop; raises EngineError when the address is taken."""
        listener = _listener(self._host, self._port)
        self._port = listener.getsockname()[1]
        sql = "SELECT timezone() AS timezone, version() AS version"
        about = (await self._in_thread(self._engine.query, sql))[0]
        self._timezone, self._version = str(about["timezone"]), str(about["version"])
        config = door_config(
            self.app, self._door, lifespan="off", timeout_graceful_shutdown=STOP_TIMEOUT_SECONDS
        )
        self._server = DoorServer(config)
        self._serving = asyncio.create_task(
            self._server.serve(sockets=[listener]), name="clickhouse-port"
        )

    async def stop(self) -> None:
        """Ends running requests within STOP_TIMEOUT_SECONDS and frees the address."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving
            self._server = self._serving = None
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ping(self, _request: Request) -> Response:
        return PlainTextResponse("Ok.\n")

    async def _query(self, request: Request) -> Response:
        given_id = request.query_params.get("query_id", "")
        is_plain = given_id.isascii() and given_id.isprintable()  # as a header can carry it back
        query_id = given_id if given_id and is_plain else str(uuid.uuid4())
        try:
            self._check_caller(request)
            if not is_plain:
                raise EngineError(
                    "query_id must be printable ASCII: it comes back in a header",
                    code=36,
                    name="BAD_ARGUMENTS",
                )
            ask = await self._read(request, query_id)
            if not ask.sql:
                return PlainTextResponse("Ok.\n")
            answer = await self._slot(ask)
        except EngineError as error:
            return _error_response(error, query_id)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody hears it: the caller has gone
        return Response(answer.body, headers=answer.headers)

    def _check_caller(self, request: Request) -> None:
        if is_loopback(self._host):
            self._check_page(request)
        if self._password and not hmac.compare_digest(
            _given_password(request).encode(), self._password.encode()
        ):
            raise EngineError(
                "Authentication failed: password is incorrect",
                code=516,
                name="AUTHENTICATION_FAILED",
            )

    def _check_page(self, request: Request) -> None:
        name = name_called(request.headers)
        if not name or not (is_loopback(name) or name in self._allowed_hosts):
            raise EngineError(
                f"Host {request.headers.get('host', '')[:100]!r} is not served here; use "
                f"{self.url}, or name it in TIDEMILL_ALLOWED_HOSTS",
                code=497,
                name="ACCESS_DENIED",
            )
        if is_from_another_page(request.headers):
            # It could not read the answer, yet it could keep the engine busy.
            raise EngineError(
                "a page of another site may not ask here; ask from a program, without an Origin "
                "header",
                code=497,
                name="ACCESS_DENIED",
            )

    async def _read(self, request: Request, query_id: str) -> _Ask:
        body = wire.unpacked(
            await _limited_body(request),
            request.headers.get("content-encoding", ""),
            bytes_max=BODY_BYTES_MAX,
        )
        arguments = _address_arguments(request.url.query)
        content_type = request.headers.get("content-type", "")
        if content_type.startswith("multipart/form-data"):
            arguments |= _form_fields(body, content_type)
            body = b""
        sql = _decoded(body)
        if "query" in arguments:
            sql = "\n".join(part for part in (arguments["query"], sql) if part)
        encoding = None
        if arguments.get("enable_http_compression") != "0":
            encoding = wire.accepted_encoding(request.headers.get("accept-encoding", ""))
        return _Ask(
            sql=sql.strip(),
            database=_argument(request, arguments, "database", DEFAULT_DATABASE),
            fmt=_argument(
                request, arguments, "format", arguments.get("default_format", DEFAULT_FORMAT)
            ),
            params={k[6:]: v for k, v in arguments.items() if k.startswith("param_")},
            settings={k: v for k, v in arguments.items() if not k.startswith("param_")},
            query_id=query_id,
            encoding=encoding,
            is_block_compressed=arguments.get("compress") in ("1", "true"),
            is_hello=sql.strip() == wire.HELLO_SQL
            and arguments.get("default_format") == "Native"
            and _is_at_least(arguments.get("client_protocol_version", ""), wire.HELLO_PROTOCOL_MIN),
        )

    async def _slot(self, ask: _Ask) -> _Answer:
        if self._in_flight >= self._limits.queries_max + self._limits.waiting_max:
            raise EngineError(
                f"Too many simultaneous queries: {self._in_flight}; ask again later",
                code=202,
                name="TOO_MANY_SIMULTANEOUS_QUERIES",
            )
        self._in_flight += 1
        try:
            return await self._in_thread(self._answer, ask)
        finally:
            self._in_flight -= 1

    async def _in_thread(self, call: Callable[[_A], _R], argument: _A) -> _R:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, argument)

    def _answer(self, ask: _Ask) -> _Answer:
        """Everything of a request that takes time, in a thread of the port."""
        if ask.is_hello:
            hello = wire.hello_block(DISPLAY_NAME, self._version, self._timezone)
            return self._packed(ask, "Native", QueryOutput(hello))
        approved = self._guard.check(ask.sql, database=ask.database)
        fmt = self._policy.checked_format(approved.fmt or ask.fmt)
        settings = self._policy.effective(ask.settings, approved.settings)
        output = self._engine.run(
            approved.sql, fmt, ask.params, {"database": ask.database, **settings}
        )
        return self._packed(ask, fmt, output)

    def _packed(self, ask: _Ask, fmt: str, output: QueryOutput) -> _Answer:
        summary = {
            "read_rows": str(output.rows_read),
            "read_bytes": str(output.bytes_read),
            "written_rows": "0",
            "written_bytes": "0",
            "result_bytes": str(len(output.data)),
            "elapsed_ns": str(int(output.elapsed_seconds * 1e9)),
        }
        headers = {
            "Content-Type": wire.content_type_of(fmt),
            "X-ClickHouse-Format": fmt,
            "X-ClickHouse-Query-Id": ask.query_id,
            "X-ClickHouse-Server-Display-Name": DISPLAY_NAME,
            "X-ClickHouse-Summary": orjson.dumps(summary).decode(),
            "X-ClickHouse-Timezone": self._timezone,
        }
        if ask.is_block_compressed:
            return _Answer(wire.compressed_blocks(output.data), headers)
        if ask.encoding and len(output.data) >= wire.COMPRESS_BYTES_MIN:
            headers |= {"Content-Encoding": ask.encoding, "Vary": "Accept-Encoding"}
            return _Answer(wire.packed(output.data, ask.encoding), headers)
        return _Answer(output.data, headers)


def _listener(host: str, port: int) -> socket.socket:
    listener = socket.socket(family_of(host), socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise EngineError(
            f"ClickHouse port {host}:{port}: {error.strerror}; "
            "choose another with --clickhouse-port"
        ) from error
    listener.set_inheritable(False)
    return listener


async def _limited_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise EngineError(
                f"Request body is larger than {BODY_BYTES_MAX} bytes; this port only reads",
                code=62,
                name="SYNTAX_ERROR",
            )
    return bytes(body)


def _is_at_least(text: str, least: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least


def _address_arguments(text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, errors="strict", max_num_fields=ARGUMENTS_MAX
        )
    except ValueError as error:
        raise EngineError(f"Address: {error}", code=62, name="SYNTAX_ERROR") from error
    return dict(pairs)


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise EngineError(f"Query is not UTF-8: {error}", code=62, name="SYNTAX_ERROR") from error


def _argument(request: Request, arguments: dict[str, str], name: str, default: str) -> str:
    """A value that comes in the address or in an X-ClickHouse header; the header wins, as there."""
    return request.headers.get(f"x-clickhouse-{name}") or arguments.get(name) or default


def _form_fields(body: bytes, content_type: str) -> dict[str, str]:
    """Fields of a multipart form: clients send long parameters that way."""
    from email.parser import BytesParser
    from email.policy import HTTP

    head = b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n"
    message = BytesParser(policy=HTTP).parsebytes(head + body)
    fields = dict[str, str]()
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        data = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(data, bytes):
            fields[name] = _decoded(data)
    return fields


def _given_password(request: Request) -> str:
    given = request.headers.get("x-clickhouse-key") or request.query_params.get("password")
    if given:
        return given
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value
    if scheme.lower() != "basic":
        return ""
    try:
        pair = base64.b64decode(value, validate=True)
    except binascii.Error:
        return ""
    return unquote_to_bytes(pair.partition(b":")[2]).decode("utf-8", "replace")


def _error_response(error: EngineError, query_id: str) -> Response:
    headers = {
        "X-ClickHouse-Exception-Code": str(error.code),
        "X-ClickHouse-Query-Id": query_id,
    }
    if error.code == 516:
        headers["WWW-Authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
    return PlainTextResponse(f"{error}\n", status_code=wire.status_of(error), headers=headers)
