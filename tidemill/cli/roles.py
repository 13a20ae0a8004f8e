"""Commands that run something until it is stopped: `dev` and the roles apart.

Owns their options. Refuses to know what a role does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.agents import exit_codes
from tidemill.cli import options as o
from tidemill.cli.terminal import Terminal

if TYPE_CHECKING:
    from tidemill.agents.settings import CommonSettings, WorkerSettings

app = typer.Typer()


def _run_role(role: str, settings: CommonSettings, load: Callable[[], Callable[[], int]]) -> None:
    """Load the code, wait for a supervisor's word where there is one, run, exit."""
    from tidemill.agents import own_streams
    from tidemill.agents.logging import configure_logging
    from tidemill.agents.private_files import PRIVATE_UMASK
    from tidemill.agents.supervisor import wait_for_go

    own_streams.keep()
    configure_logging(role, settings.log_format, settings.log_level)
    if role != "worker":
        # What these roles write is of users' jobs; a worker's files are its handlers'.
        os.umask(PRIVATE_UMASK)
    run = load()
    wait_for_go()
    raise typer.Exit(run())


@app.command(rich_help_panel="Run")
def dev(
    modules: o.Modules = [],  # noqa: B006 - Typer reads it and never changes it
    data: o.Data = None,
    kafka_port: o.KafkaPort = None,
    clickhouse_port: o.ClickHousePort = None,
    http_port: o.HttpPort = None,
    http_host: o.HttpHost = None,
    partitions: o.Partitions = None,
    topic_prefix: o.TopicPrefix = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", help="async handlers at once.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, max=64, help="Worker processes.")
    ] = 1,
    reload: Annotated[
        bool, typer.Option("--reload", help="Load the modules again when a file of theirs changes.")
    ] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Bring handlers, and ask for a job of every fate.")
    ] = False,
    stop_grace_seconds: o.StopGrace = None,
    log_format: o.LogFormat = None,
    log_level: o.LogLevel = None,
) -> None:
    """Everything on this machine: Kafka, ledger, worker, ClickHouse, page. Ctrl-C stops it."""
    from tidemill import demo_seeds
    from tidemill.agents.dev import DevPlan, DevStack, choose_ports
    from tidemill.agents.settings import DEFAULT_KAFKA_PORT, StackSettings, load
    from tidemill.agents.worker.module_names import plan_modules

    settings = load(
        StackSettings, data=data, clickhouse_port=clickhouse_port, http_port=http_port,
        http_host=http_host, partitions=partitions, topic_prefix=topic_prefix,
        log_format=log_format, log_level=log_level,
    )
    worker = _check_roles(concurrency, stop_grace_seconds)
    if demo and demo_seeds.MODULE not in modules:
        modules = [*modules, demo_seeds.MODULE]
    plan_modules(modules)  # names first: it takes no time
    ports = choose_ports(
        {
            "kafka": DEFAULT_KAFKA_PORT if kafka_port is None else kafka_port,
            "clickhouse": settings.clickhouse_port,
            "http": settings.http_port,
        }
    )
    plan = DevPlan(
        modules=modules, data=settings.data, kafka_port=ports["kafka"],
        clickhouse_port=ports["clickhouse"], http_port=ports["http"], settings=settings,
        concurrency=concurrency, workers=workers, is_reloading=reload,
        stop_grace_seconds=_grace(worker),
    )
    terminal = Terminal()
    lines = _Lines(settings.log_format, terminal.write)

    def ready() -> None:
        terminal.write(
            f"ready kafka={plan.kafka} clickhouse={plan.clickhouse} http={plan.http}",
            is_result=True,
        )
        if demo:
            say = partial(lines, "demo")
            demo_seeds.begin(plan.kafka, settings.topic_prefix, plan.data, say)

    try:
        code = DevStack(plan, partial(lines, "tidemill"), lines).run(ready)
    finally:
        terminal.close()
    raise typer.Exit(code)


def _check_roles(concurrency: int | None, stop_grace_seconds: float | None) -> WorkerSettings:
    """What the environment says to the roles: each of them would end by it, after the start."""
    from tidemill.agents.settings import LedgerSettings, WorkerSettings, load

    load(LedgerSettings)
    return load(WorkerSettings, concurrency=concurrency, stop_grace_seconds=stop_grace_seconds)


def _grace(worker: WorkerSettings) -> float:
    """What was asked for. Else less than a worker of its own has: a laptop shall stop at once."""
    from tidemill.agents.dev import DEV_STOP_GRACE_SECONDS

    is_given = "stop_grace_seconds" in worker.model_fields_set
    return worker.stop_grace_seconds if is_given else DEV_STOP_GRACE_SECONDS


def _say(line: str) -> None:
    _Lines()("tidemill", line)


class _Lines:
    """Lines of the roles on stderr, each behind its role's name."""

    WIDTH = 8  # the longest name of a role
    COLORS = ("36", "33", "32", "35", "34", "31")

    def __init__(
        self, log_format: str = "console", write: Callable[[str], None] | None = None
    ) -> None:
        self._write = write or _write_now
        is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._has_color = is_terminal and not os.environ.get("NO_COLOR")
        self._is_json = log_format == "json"

    def __call__(self, name: str, line: str) -> None:
        if self._is_json:
            # Who asks for JSON reads all of it by a program: what a handler prints, too.
            is_event = line.startswith("{") and line.endswith("}")
            told = line if is_event else json.dumps({"event": line, "level": "info", "role": name})
            self._write(told)
            return
        label = f"{name:<{self.WIDTH}} |"
        if self._has_color:
            color = self.COLORS[sum(name.encode()) % len(self.COLORS)]
            label = f"\x1b[{color}m{label}\x1b[0m"
        self._write(f"{label} {line}")


def _write_now(line: str) -> None:
    # Whoever read it may have had enough (`2>&1 | head`), or the terminal is gone.
    with contextlib.suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.write(f"{line}\n")


@app.command(rich_help_panel="Run")
def ledger(
    kafka: o.Kafka = None,
    topic_prefix: o.TopicPrefix = None,
    partitions: o.Partitions = None,
    instance_id: o.InstanceId = None,
    log_format: o.LogFormat = None,
    log_level: o.LogLevel = None,
) -> None:
    """Decide: from requests, commands and outcomes to events."""
    from tidemill.agents.settings import LedgerSettings, load

    settings = load(
        LedgerSettings, kafka=kafka, topic_prefix=topic_prefix, partitions=partitions,
        instance_id=instance_id, log_format=log_format, log_level=log_level,
    )
    _run_role(
        "ledger", settings,
        lambda: _bound("tidemill.agents.ledger.main", "run_ledger", "ledger", settings),
    )


def _load_role(module: str, name: str, extra: str) -> Callable[..., int]:
    """A role's entry point; says which extra to install when its libraries are missing."""
    from tidemill.cli.output import CliError

    try:
        found: Callable[..., int] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise CliError(
            f"{error}; install this role's libraries with: pip install 'tidemill[{extra}]'",
            exit_codes.CONFIG,
        ) from error
    return found


def _bound(module: str, name: str, extra: str, *args: Any) -> Callable[[], int]:
    run = _load_role(module, name, extra)
    return lambda: run(*args)


@app.command(rich_help_panel="Run")
def worker(
    modules: o.Modules,
    kafka: o.Kafka = None,
    topic_prefix: o.TopicPrefix = None,
    partitions: o.Partitions = None,
    queues: Annotated[
        str | None, typer.Option("--queues", metavar="A,B", help="Queues to serve; all: none.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", help="async handlers at once.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="def handlers at once.")] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", help="process=True handlers at once.")
    ] = None,
    instances: Annotated[
        int, typer.Option("--instances", min=1, max=64, help="Processes of this worker.")
    ] = 1,
    worker_id: Annotated[
        str | None, typer.Option("--worker-id", help="Name, the same after a restart.")
    ] = None,
    stop_grace_seconds: o.StopGrace = None,
    log_format: o.LogFormat = None,
    log_level: o.LogLevel = None,
) -> None:
    """Run handlers."""
    from tidemill.agents.settings import WorkerSettings, load

    settings = load(
        WorkerSettings, kafka=kafka, topic_prefix=topic_prefix, partitions=partitions,
        queues=queues, concurrency=concurrency, threads=threads, processes=processes,
        worker_id=worker_id, stop_grace_seconds=stop_grace_seconds, log_format=log_format,
        log_level=log_level,
    )
    if instances > 1:
        raise typer.Exit(_run_instances(instances, settings.worker_id, settings.stop_grace_seconds))
    _run_role("worker", settings, lambda: _loaded_worker(settings, modules))


def _loaded_worker(settings: WorkerSettings, modules: list[str]) -> Callable[[], int]:
    """Users' modules are a part of the role's code: what is wrong in them is said at once."""
    bind: Any = _load_role("tidemill.agents.worker.main", "load_and_bind", "worker")
    run: Callable[[], int] = bind(settings, modules)
    return run


def _run_instances(instances: int, worker_id: str, grace_seconds: float) -> int:
    """The same command line once per instance, each with a name of its own."""
    from tidemill.agents.supervisor import keep_instances, role_argv, wait_for_go

    wait_for_go()
    words = _without_option(sys.argv[1:], ("--instances", "--worker-id"))
    commands = {
        f"worker-{number}": role_argv(*words, "--worker-id", f"{worker_id}-{number}")
        for number in range(instances)
    }
    return keep_instances(commands, grace_seconds, _say, _Lines())


def _without_option(words: list[str], names: tuple[str, ...]) -> list[str]:
    kept = []
    rest = iter(words)
    for word in rest:
        if word in names:
            next(rest, None)
        elif not word.startswith(tuple(f"{name}=" for name in names)):
            kept.append(word)
    return kept


@app.command(rich_help_panel="Run")
def sink(
    kafka: o.Kafka = None,
    clickhouse: o.ClickHouse = None,
    topic_prefix: o.TopicPrefix = None,
    partitions: o.Partitions = None,
    instance_id: o.InstanceId = None,
    log_format: o.LogFormat = None,
    log_level: o.LogLevel = None,
) -> None:
    """Fold events into ClickHouse."""
    from tidemill.agents.settings import SinkSettings, load

    settings = load(
        SinkSettings, kafka=kafka, clickhouse=clickhouse, topic_prefix=topic_prefix,
        partitions=partitions, instance_id=instance_id, log_format=log_format,
        log_level=log_level,
    )
    _run_role(
        "sink", settings, lambda: _bound("tidemill.agents.sink.main", "run_sink", "sink", settings)
    )


@app.command(rich_help_panel="Run")
def api(
    kafka: o.Kafka = None,
    clickhouse: o.ClickHouse = None,
    topic_prefix: o.TopicPrefix = None,
    partitions: o.Partitions = None,
    http_host: o.HttpHost = None,
    http_port: o.HttpPort = None,
    log_format: o.LogFormat = None,
    log_level: o.LogLevel = None,
) -> None:
    """Serve the HTTP API and the page."""
    from tidemill.agents.settings import ApiSettings, load

    settings = load(
        ApiSettings, kafka=kafka, clickhouse=clickhouse, topic_prefix=topic_prefix,
        partitions=partitions, http_host=http_host, http_port=http_port, log_format=log_format,
        log_level=log_level,
    )
    _run_role(
        "api", settings, lambda: _bound("tidemill.agents.api.main", "run_api", "api", settings)
    )


@app.command(hidden=True)
def stack(
    kafka: o.Kafka = None,
    clickhouse: o.ClickHouse = None,
    topic_prefix: o.TopicPrefix = None,
    partitions: o.Partitions = None,
    clickhouse_port: o.ClickHousePort = None,
    http_host: o.HttpHost = None,
    http_port: o.HttpPort = None,
    instance_id: o.InstanceId = None,
    log_format: o.LogFormat = None,
    log_level: o.LogLevel = None,
) -> None:
    """Sink, API, page and ClickHouse port in one process, as `dev` runs them."""
    from tidemill.agents.settings import StackSettings, load

    settings = load(
        StackSettings, kafka=kafka, clickhouse=clickhouse, topic_prefix=topic_prefix,
        partitions=partitions, clickhouse_port=clickhouse_port, http_host=http_host,
        http_port=http_port, instance_id=instance_id, log_format=log_format, log_level=log_level,
    )
    _run_role(
        "stack", settings,
        lambda: _bound("tidemill.agents.sink.main", "run_stack", "dev-stack", settings),
    )
