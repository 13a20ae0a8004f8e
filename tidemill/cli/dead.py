"""Commands about dead letters: what was refused and what failed for good, and the way out.

Owns their options and what is shown. Refuses to know where the answers are from (`tidemill.dead`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final

import typer

from tidemill.agents import exit_codes
from tidemill.cli import options as o
from tidemill.cli.output import CliError, print_json, print_table
from tidemill.schemas.safe_text import safe_line

app = typer.Typer()
dead_app = typer.Typer(
    help="Refused records and failed jobs, each with a way out.", no_args_is_help=True
)

LIST_LIMIT: Final = 50
LIMIT_MAX: Final = 1_000
LIST_COLUMNS: Final = ("at", "id", "stage", "code", "field", "user_id", "job_id")
MESSAGE_LENGTH_MAX: Final = 400  # characters of a message in a list

FromTopic = Annotated[
    bool, typer.Option("--from-topic", help="Read jobs.dead itself; needs no ClickHouse.")
]


@dead_app.command("list")
def list_(
    limit: Annotated[int, typer.Option("--limit", min=1, max=LIMIT_MAX)] = LIST_LIMIT,
    kind: Annotated[str | None, typer.Option("--kind", help="refused or failed.")] = None,
    from_topic: FromTopic = False,
    as_json: o.AsJson = False,
    kafka: o.Kafka = None,
    clickhouse: o.ClickHouse = None,
    topic_prefix: o.TopicPrefix = None,
) -> None:
    """The newest dead letters: a record's id is its place on jobs.dead, a job's is its own."""
    from tidemill.dead import list_dead

    if kind not in (None, "refused", "failed"):
        raise CliError(f"--kind {kind}: write refused or failed", exit_codes.USAGE)
    entries: Iterable[dict[str, Any]] = (
        _topic(kafka, topic_prefix) if from_topic
        else list_dead(_clickhouse(clickhouse), LIMIT_MAX if kind else limit)
    )
    # A topic may hold millions: only the newest are kept.
    found = heapq.nlargest(
        limit, (entry for entry in entries if kind in (None, entry["kind"])),
        key=lambda entry: str(entry["at"]),
    )
    if as_json:
        print_json(found)
        return
    if not found:
        typer.echo("no dead letter")
        return
    print_table([_line(entry) for entry in found], LIST_COLUMNS)
    for entry in found:
        message = safe_line(str(entry["message"]), MESSAGE_LENGTH_MAX)
        typer.echo(f"{safe_line(str(entry['id']))}: {message}\n    {entry['way_out']}")


@dead_app.command("show")
def show(
    dead_id: Annotated[
        str, typer.Argument(metavar="ID", help="PARTITION/OFFSET of a record, or a job's id.")
    ],
    user: Annotated[
        str | None, typer.Option("--user", help="Whose job; then ID is a job's.")
    ] = None,
    from_topic: FromTopic = False,
    as_json: o.AsJson = False,
    kafka: o.Kafka = None,
    clickhouse: o.ClickHouse = None,
    topic_prefix: o.TopicPrefix = None,
) -> None:
    """One dead letter with all that is kept of it; exit code 4 when there is none."""
    from tidemill import dead

    place = None if user is not None else dead.IDS.match(dead_id)
    found: list[dict[str, Any]]
    if from_topic:
        found = [
            entry for entry in _topic(kafka, topic_prefix)
            if dead_id in (entry["id"], entry["job_id"]) and user in (None, entry["user_id"])
        ]
    elif place is not None:
        entry = dead.show_refused(_clickhouse(clickhouse), int(place[1]), int(place[2]))
        found = [] if entry is None else [entry]
    else:
        found = dead.show_failed(_clickhouse(clickhouse), dead_id, user)
    if not found:
        raise CliError(
            f"no dead letter {safe_line(dead_id)!r}; `tidemill dead list` names them",
            exit_codes.NOT_FOUND,
        )
    if as_json:
        print_json(found)
        return
    for entry in found:
        for name, value in entry.items():
            if value not in ("", None):
                shown = value if name in ("value", "message") else safe_line(str(value), 1_000)
                typer.echo(f"{name + ':':<12} {shown}")
        typer.echo("")


def _line(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: safe_line(str(entry.get(name) or ""), 512) for name in LIST_COLUMNS}


def _topic(kafka: str | None, topic_prefix: str | None) -> Iterator[dict[str, Any]]:
    from confluent_kafka import KafkaException

    from tidemill.agents.settings import CommonSettings, load
    from tidemill.dead import read_topic

    settings = load(CommonSettings, kafka=kafka, topic_prefix=topic_prefix)
    try:
        yield from read_topic(settings.kafka, settings.topic_prefix)
    except KafkaException as error:
        raise CliError(
            f"jobs.dead cannot be read from {settings.kafka}: {error.args[0].str()}; check --kafka "
            "and --topic-prefix", exit_codes.UNREACHABLE,
        ) from None


def _clickhouse(clickhouse: str | None) -> str:
    from tidemill.agents.settings import CommonSettings, load

    return load(CommonSettings, clickhouse=clickhouse).clickhouse


app.add_typer(dead_app, name="dead", rich_help_panel="Jobs")
