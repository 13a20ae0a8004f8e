"""The app and its server: everything that answers HTTP, put together.

Owns the order of middleware, the open routes (`/healthz`, `/readyz`, `/metrics`), and a server that
runs in a thread beside other work. Refuses to know panels and pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from tidemill.agents.api import problems, view
from tidemill.agents.api.commands import Commander, add_commands
from tidemill.agents.api.kafka_watch import KafkaWatch
from tidemill.agents.api.metrics import CONTENT_TYPE, Metrics
from tidemill.agents.api.pages import Pages
from tidemill.agents.api.problems import Problem
from tidemill.agents.api.producer import Enqueuer
from tidemill.agents.api.reader import Reader, ReadFailed
from tidemill.agents.api.routes import build_routes, read_problem
from tidemill.agents.api.schedule_page import SchedulePage
from tidemill.agents.api.schedules import ScheduleCommander, add_schedules
from tidemill.agents.api.security import Gate, GateMiddleware
from tidemill.agents.callers import family_of, http_address, is_loopback
from tidemill.agents.clickhouse.engine import Engine, open_engine
from tidemill.agents.http_door import DoorProtocol, DoorServer, door_config
from tidemill.agents.logging import announce_ready, configure_logging
from tidemill.agents.queries import LIMIT_MAX
from tidemill.agents.settings import ENV_PREFIX, ApiSettings, SettingsError

STATIC: Final = Path(__file__).parent / "static"
START_SECONDS: Final = 15.0  # seconds until the port must be served
STOP_SECONDS: Final = 5  # seconds for requests in flight at the end
KEEP_ALIVE_SECONDS: Final = 30  # seconds; longer than the two of a page's polling
BACKLOG: Final = 128  # connections that wait to be accepted

logger = structlog.get_logger("tidemill.api")


def build_api(engine: Engine | Callable[[], Engine], settings: ApiSettings) -> FastAPI:
    """The whole app. `engine` may be a function that opens one, for a ClickHouse that comes later.

    Raises SettingsError when it would be reachable from other machines without a token.
    """
    token = _token(settings)
    metrics = Metrics()
    reader = Reader(engine, metrics)
    enqueuer = Enqueuer(settings.kafka, settings.topic_prefix)
    commander = Commander(settings.kafka, settings.topic_prefix, enqueuer, reader)
    schedules = ScheduleCommander(settings.kafka, settings.topic_prefix)
    gate = Gate(settings.http_host, token, settings.allowed_hosts)
    pages = Pages(reader, gate, commander, view.Ports.of(settings))
    watch = KafkaWatch(settings.kafka, settings.topic_prefix)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        watch.start()
        yield
        await asyncio.to_thread(watch.close)
        reader.close()
        commander.close()
        await asyncio.to_thread(schedules.close)
        enqueuer.close()

    app = FastAPI(
        title="Tidemill",
        description="Background jobs on an event log: ask for jobs, read what became of them.",
        lifespan=lifespan,
        # The bundled documentation pages load scripts from other hosts; /docs is a page of ours.
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app, pages.render_problem)
    _answer_outages(app)
    _add_probes(app, reader, watch, metrics)
    routes = build_routes(reader, enqueuer, metrics)
    add_commands(routes, commander)
    add_schedules(routes, schedules)
    app.include_router(routes)
    app.include_router(pages.router())
    app.include_router(SchedulePage(pages, reader, schedules).router())
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_middleware(GateMiddleware, gate=gate)
    app.add_middleware(_MetricsMiddleware, metrics=metrics)
    return app


def _token(settings: ApiSettings) -> str | None:
    token = settings.token.get_secret_value() if settings.token is not None else ""
    if not token and not is_loopback(settings.http_host):
        raise SettingsError(
            f"http_host {settings.http_host!r} can be reached from other machines, so a token is "
            f"required; set {ENV_PREFIX}TOKEN, or bind to 127.0.0.1"
        )
    return token or None


def _answer_outages(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> Response:
        assert isinstance(error, ReadFailed)
        return read_problem(error).response(request.url.path)

    async def drop(_request: Request, _error: Exception) -> Response:
        return Response(status_code=400)  # nobody hears it: the caller has gone

    app.add_exception_handler(ReadFailed, answer)
    app.add_exception_handler(ClientDisconnect, drop)


def _add_probes(
    app: FastAPI, reader: Reader, watch: KafkaWatch, metrics: Metrics
) -> None:
    @app.get("/healthz", summary="Whether the process answers; never depends on others")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether ClickHouse answers and Kafka takes requests")
    async def readyz() -> Response:
        problem = watch.problem()
        if problem is not None:
            raise Problem(503, "not-ready", f"Kafka {problem}; the log has more")
        try:
            await reader.ping()
        except ReadFailed as error:
            # The reason may name addresses, and this route is open to all.
            reason = "tables or server missing" if error.is_outage else "query refused"
            raise Problem(503, "not-ready", f"ClickHouse: {reason}; the log has more") from error
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", include_in_schema=False)
    async def exposition() -> Response:
        metrics.kafka_up.set(watch.problem() is None)
        # While ClickHouse is away the last number stands.
        with contextlib.suppress(ReadFailed):
            gaps = await reader.rows("log_gaps", limit=LIMIT_MAX)
            metrics.gap_offsets.set(sum(gap["offsets"] for gap in gaps))
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})


class _MetricsMiddleware:
    """Counts answers by the route's pattern, never by the address: ids must not become labels."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def counted_send(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted_send)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(
                route=route, method=scope["method"], status=str(status)
            ).inc()
            self._metrics.request_seconds.labels(route=route).observe(
                time.perf_counter() - started
            )


class ApiServer:
    """An app served from a thread of its own, beside whatever the process does otherwise."""

    def __init__(
        self, app: ASGIApp, host: str, port: int, door: type[DoorProtocol] = DoorProtocol,
        setting: str = "HTTP_PORT",
    ) -> None:
        self._socket = _bind(host, port, setting)
        self.port: int = self._socket.getsockname()[1]
        self._server = DoorServer(
            door_config(
                app, door, timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=STOP_SECONDS, backlog=BACKLOG,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="tidemill-http",
            daemon=True,
        )

    def start(self) -> None:
        """Return once requests are served; RuntimeError when that does not happen."""
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the HTTP server did not start; the log has the reason")
            time.sleep(0.01)

    def is_alive(self) -> bool:
        """Whether it still serves."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Finish what is in flight, then end the thread."""
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS * 2)
        self._socket.close()


def _bind(host: str, port: int, setting: str) -> socket.socket:
    bound = socket.socket(family_of(host), socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host.strip("[]"), port))
    except OSError as error:
        bound.close()
        raise SettingsError(
            f"http address {host}:{port} cannot be used ({error.strerror}); choose another with "
            f"{ENV_PREFIX}{setting}"
        ) from error
    bound.listen(BACKLOG)
    return bound


def run_api(settings: ApiSettings) -> int:
    """The role: serve until SIGTERM or Ctrl-C; 0 after a clean stop, 1 when the server died."""
    configure_logging("api", settings.log_format, settings.log_level)
    server = ApiServer(
        build_api(lambda: open_engine(settings.clickhouse), settings),
        settings.http_host,
        settings.http_port,
    )
    stop = threading.Event()
    for word in (signal.SIGTERM, signal.SIGINT):
        signal.signal(word, lambda *_: stop.set())
    server.start()
    announce_ready("api", http=http_address(settings.http_host, server.port))
    while server.is_alive() and not stop.wait(0.5):
        pass
    is_clean = stop.is_set()
    server.stop()
    return 0 if is_clean else 1
