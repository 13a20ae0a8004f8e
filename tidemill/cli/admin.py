"""Commands about the installation: broker, topics, settings, health.

Owns their options and what is shown. Refuses to know how each is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from tidemill.agents import exit_codes
from tidemill.cli import options as o
from tidemill.cli.output import print_json, print_table

app = typer.Typer()
broker_app = typer.Typer(help="The embedded Kafka by itself.", no_args_is_help=True)
topics_app = typer.Typer(help="What must exist in Kafka.", no_args_is_help=True)

Queues = Annotated[
    str | None, typer.Option("--queues", metavar="A,B", help="Queues beside `default`.")
]


def _broker_folder(data: str | None) -> Path:
    from tidemill.agents.settings import CommonSettings, load

    folder = load(CommonSettings, data=data).data
    # Messages of the broker name its own folder, so that is taken as well.
    return folder if (folder / "broker.lock").exists() else folder / "kafka"


@broker_app.command("start")
def broker_start(data: o.Data = None, kafka_port: o.KafkaPort = None) -> None:
    """Start a broker that stays when this command has ended."""
    from tidemill.agents.embedded.broker import start_background
    from tidemill.agents.embedded.ports import free_port
    from tidemill.agents.private_files import make_data_folder
    from tidemill.agents.settings import DEFAULT_HOST, DEFAULT_KAFKA_PORT, CommonSettings, load

    with contextlib.suppress(OSError):  # what is in the way is told by the broker's own start
        make_data_folder(load(CommonSettings, data=data).data)
    port = DEFAULT_KAFKA_PORT if kafka_port is None else kafka_port or free_port()
    pid = start_background(_broker_folder(data), port)
    print(f"ready kafka={DEFAULT_HOST}:{port} pid={pid}", flush=True)


@broker_app.command("stop")
def broker_stop(data: o.Data = None) -> None:
    """Stop the broker of a folder."""
    from tidemill.agents.embedded.broker import status, stop_background

    folder = _broker_folder(data)
    if not status(folder).is_running:
        print(f"no broker runs in {folder}")
        return
    is_clean = stop_background(folder)
    print("stopped" if is_clean else "killed: it did not end in time")


@broker_app.command("status")
def broker_status(data: o.Data = None, as_json: o.AsJson = False) -> None:
    """What runs in a folder; exit code 3 when nothing does."""
    from tidemill.agents.embedded.broker import status

    found = status(_broker_folder(data))
    row = {**dataclasses.asdict(found), "data_dir": str(found.data_dir),
           "bootstrap": found.bootstrap}
    if as_json:
        print_json(row)
    else:
        print_table([row], ("is_running", "is_ready", "pid", "bootstrap", "data_dir"))
    if not found.is_running:
        raise typer.Exit(exit_codes.UNREACHABLE)


@topics_app.command("plan")
def topics_plan(
    kafka: o.Kafka = None,
    topic_prefix: o.TopicPrefix = None,
    partitions: o.Partitions = None,
    queues: Queues = None,
    as_json: o.AsJson = False,
) -> None:
    """Show what `apply` would do; exit code 5 when there is anything."""
    from tidemill.agents import topics
    from tidemill.agents.settings import WorkerSettings, load
    from tidemill.looking import reach
    from tidemill.schemas.topics import Topics

    settings = load(WorkerSettings, kafka=kafka, topic_prefix=topic_prefix, partitions=partitions,
                    queues=queues)
    reach(settings.kafka)
    changes = topics.plan(settings.kafka, Topics(settings.topic_prefix), settings.partitions,
                          settings.queues or ())
    _show_changes(changes, as_json, "all topics are as planned")
    if changes:
        raise typer.Exit(exit_codes.CHECK_FAILED)


@topics_app.command("apply")
def topics_apply(
    kafka: o.Kafka = None,
    topic_prefix: o.TopicPrefix = None,
    partitions: o.Partitions = None,
    queues: Queues = None,
    as_json: o.AsJson = False,
) -> None:
    """Create missing topics, mend settings that drifted."""
    from tidemill.agents import topics
    from tidemill.agents.settings import WorkerSettings, load
    from tidemill.looking import reach
    from tidemill.schemas.topics import Topics

    settings = load(WorkerSettings, kafka=kafka, topic_prefix=topic_prefix, partitions=partitions,
                    queues=queues)
    reach(settings.kafka)
    changes = topics.apply(settings.kafka, Topics(settings.topic_prefix), settings.partitions,
                           settings.queues or ())
    _show_changes(changes, as_json, "nothing to do: all topics are as planned")


def _show_changes(changes: object, as_json: bool, nothing: str) -> None:
    from tidemill.agents.topics import Change

    assert isinstance(changes, list)
    rows = [dataclasses.asdict(change) for change in changes if isinstance(change, Change)]
    if as_json:
        print_json(rows)
    elif rows:
        print_table(rows, ("topic", "action", "detail"))
    else:
        print(nothing)


@app.command(rich_help_panel="Installation")
def config(
    role: Annotated[
        str, typer.Option("--role", help="common, ledger, worker, sink, api, stack.")
    ] = "stack",
    kafka: o.Kafka = None,
    clickhouse: o.ClickHouse = None,
    topic_prefix: o.TopicPrefix = None,
    partitions: o.Partitions = None,
    data: o.Data = None,
    as_json: o.AsJson = False,
) -> None:
    """The settings in force and where each comes from; secrets are masked."""
    from tidemill.agents import settings as s
    from tidemill.cli.output import CliError

    classes: dict[str, type[s.CommonSettings]] = {
        "common": s.CommonSettings, "ledger": s.LedgerSettings, "worker": s.WorkerSettings,
        "sink": s.SinkSettings, "api": s.ApiSettings, "stack": s.StackSettings,
    }
    if role not in classes:
        raise CliError(f"--role: {role!r} is none of {', '.join(classes)}", exit_codes.USAGE)
    given = {"kafka": kafka, "clickhouse": clickhouse, "topic_prefix": topic_prefix,
             "partitions": partitions, "data": data}
    rows = [
        row.model_dump() for row in s.effective(s.load(classes[role], **given), **given)
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("name", "value", "source", "environment", "meaning"))


@app.command(rich_help_panel="Installation")
def doctor(
    kafka: o.Kafka = None,
    clickhouse: o.ClickHouse = None,
    topic_prefix: o.TopicPrefix = None,
    partitions: o.Partitions = None,
    as_json: o.AsJson = False,
) -> None:
    """Check everything that a job needs; exit code 5 when something is wrong."""
    from tidemill.agents.settings import CommonSettings, load
    from tidemill.doctor import examine

    settings = load(CommonSettings, kafka=kafka, clickhouse=clickhouse,
                    topic_prefix=topic_prefix, partitions=partitions)
    findings = examine(settings)
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        rows = [
            {"check": one.check, "": one.verdict, "found": one.found, "what to do": one.hint}
            for one in findings
        ]
        print_table(rows, ("check", "", "found", "what to do"))
    if any(one.verdict == "failed" for one in findings):
        raise typer.Exit(exit_codes.CHECK_FAILED)


app.add_typer(broker_app, name="broker", rich_help_panel="Installation")
app.add_typer(topics_app, name="topics", rich_help_panel="Installation")
