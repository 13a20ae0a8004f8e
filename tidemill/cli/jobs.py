"""Commands about jobs: ask for one, look at them, steer them, ask in SQL.

Owns their options and what is shown. Refuses to know SQL (`tidemill.history`) and Kafka
(`tidemill.client`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
import typer

from tidemill.agents import exit_codes
from tidemill.agents.plain_text import plain
from tidemill.cli import options as o
from tidemill.cli.output import CliError, print_json, print_table

if TYPE_CHECKING:
    from tidemill.client import Client, CommandReceipt, CompletedJob, JobHandle

app = typer.Typer()
jobs_app = typer.Typer(help="Look at jobs and steer them.", no_args_is_help=True)

WAIT_SECONDS: Final = 60.0
DELIVERY_SECONDS: Final = 30.0  # a person waits for this answer; a broker restarts in 10 s
ANSWER_SECONDS: Final = 10.0  # the ledger answers within milliseconds
LIST_LIMIT: Final = 50
LIST_COLUMNS: Final = (
    "job_id", "user_id", "type", "status", "reason", "error_code", "attempts", "requested_at",
    "wait_ms", "run_ms",
)
LIST_SPARE: Final = ("run_ms", "wait_ms", "reason", "attempts", "error_code", "requested_at")

User = Annotated[str, typer.Option("--user", help="Whose job.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Why; kept in the job's history.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait.")]
AnswerTimeout = Annotated[
    float, typer.Option("--timeout", min=0, help="Seconds to wait for the answer; 0: do not wait.")
]


@app.command(rich_help_panel="Jobs")
def enqueue(
    type_name: Annotated[str, typer.Argument(metavar="TYPE", help="Which handler.")],
    user: User,
    payload: Annotated[
        str | None,
        typer.Option("--json", metavar="OBJECT", help="Payload: a JSON object; - reads stdin."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end and show it.")] = False,
    timeout: Timeout = WAIT_SECONDS,
    job_id: Annotated[str | None, typer.Option("--job-id", help="Idempotency key.")] = None,
    queue: Annotated[str | None, typer.Option("--queue")] = None,
    priority: Annotated[str | None, typer.Option("--priority", help="high, medium, low.")] = None,
    run_at: Annotated[
        str | None, typer.Option("--run-at", metavar="WHEN", help="+5m, +2h, or RFC 3339.")
    ] = None,
    expires_at: Annotated[
        str | None, typer.Option("--expires-at", metavar="WHEN", help="+5m, +2h, or RFC 3339.")
    ] = None,
    unique_key: Annotated[str | None, typer.Option("--unique-key")] = None,
    max_attempts: Annotated[int | None, typer.Option("--max-attempts")] = None,
    timeout_seconds: Annotated[
        float | None, typer.Option("--timeout-seconds", help="Of one attempt.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="May be repeated.")] = None,
    kafka: o.Kafka = None,
    clickhouse: o.ClickHouse = None,
    topic_prefix: o.TopicPrefix = None,
) -> None:
    """Ask for a job. The answer is JSON: where the request is, or with --wait the job's end."""
    # A job that was asked for before may have ended long ago: then ClickHouse knows.
    history = clickhouse_address(clickhouse) if wait else None
    asked: dict[str, Any] = {
        "user_id": user, "payload": _payload(payload), "job_id": job_id, "queue": queue,
        # Checked like every other field, by the rules of the request.
        "priority": priority, "run_at": _instant(run_at, "--run-at"),
        "expires_at": _instant(expires_at, "--expires-at"), "unique_key": unique_key,
        "max_attempts": max_attempts, "timeout_seconds": timeout_seconds, "source": "cli",
        "tags": tag or (),
    }
    # A slip is told before a broker that is away.
    _check(type_name, asked)
    with _client(kafka, topic_prefix, history) as client:
        handle = client.enqueue(type_name, **asked)
        _warn_of_unknown_type(kafka, topic_prefix, type_name)
        if not wait:
            print_json(dataclasses.asdict(handle))
            return
        completed = _wait(client, handle, timeout)
    print_json(completed.model_dump(mode="json"))
    if completed.status != "succeeded":
        raise typer.Exit(exit_codes.JOB_NOT_SUCCEEDED)


def _check(type_name: str, asked: dict[str, Any]) -> None:
    from tidemill.requests import Request, encode

    encode(Request(type=type_name, **asked), asked["job_id"] or "checked")


@contextlib.contextmanager
def _client(
    kafka: str | None, topic_prefix: str | None, clickhouse: str | None = None
) -> Iterator[Client]:
    """A client for one record: what librdkafka tries again by itself is no news here."""
    from tidemill.agents.settings import CommonSettings, load
    from tidemill.client import Client
    from tidemill.looking import reach

    logging.getLogger("tidemill.runtime.kafka").setLevel(logging.CRITICAL)
    reach(load(CommonSettings, kafka=kafka).kafka)
    with Client(
        kafka, clickhouse, topic_prefix, timeout_seconds=DELIVERY_SECONDS
    ) as client:
        yield client


def _warn_of_unknown_type(kafka: str | None, topic_prefix: str | None, type_name: str) -> None:
    """A worker may come later, so the request stands; a slip should be seen at once."""
    from tidemill.agents.settings import CommonSettings, load
    from tidemill.looking import known_types, unknown_type_hint
    from tidemill.schemas.topics import Topics

    settings = load(CommonSettings, kafka=kafka, topic_prefix=topic_prefix)
    known = known_types(settings.kafka, Topics(settings.topic_prefix))
    hint = None if known is None else unknown_type_hint(type_name, known)
    if hint is not None:
        sys.stderr.write(f"warning: {plain(hint)}\n")


def _wait(client: Any, handle: JobHandle, timeout: float) -> CompletedJob:
    completed: CompletedJob = client.wait(handle, timeout)
    return completed


def _payload(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    value = _json(text, "--json", 'write an object such as \'{"name": "Ada"}\'')
    if not isinstance(value, dict):
        raise CliError(
            f"--json: a payload is a JSON object, not {type(value).__name__}", exit_codes.USAGE
        )
    return value


def _json(text: str, option: str, way_out: str) -> Any:
    """A JSON value; of stdin for -."""
    from tidemill.schemas.codec import Refusal, parse_json

    try:
        # For its messages: the codec, whose bounds hold at every door, says less of a slip.
        orjson.loads(given := sys.stdin.read() if text == "-" else text)
    except orjson.JSONDecodeError as error:
        raise CliError(f"{option}: {error}; {way_out}", exit_codes.USAGE) from None
    value = parse_json(given.encode())
    if isinstance(value, Refusal):
        raise CliError(f"{option}: {value.message}", exit_codes.USAGE)
    return value


def _instant(text: str | None, option: str) -> datetime | None:
    from tidemill.cli.instants import instant_of

    if text is None or not text.strip():
        return None
    try:
        return instant_of(text, datetime.now(UTC))
    except ValueError as error:
        raise CliError(f"{option}: {error}", exit_codes.USAGE) from None


@jobs_app.command("list")
def list_jobs(
    status: Annotated[
        str | None, typer.Option("--status", help="One or several, with commas.")
    ] = None,
    type_name: Annotated[str | None, typer.Option("--type")] = None,
    user: Annotated[str | None, typer.Option("--user")] = None,
    queue: Annotated[str | None, typer.Option("--queue")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="One of its tags.")] = None,
    batch: Annotated[str | None, typer.Option("--batch", help="Its batch_id.")] = None,
    parent: Annotated[str | None, typer.Option("--parent", help="Its parent_job_id.")] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", help="Requested since: RFC 3339 instant, or 15m, 2h, 7d."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000)] = LIST_LIMIT,
    clickhouse: o.ClickHouse = None,
    as_json: o.AsJson = False,
) -> None:
    """Jobs, the newest request first."""
    from tidemill.history import list_jobs as query

    rows = query(
        clickhouse_address(clickhouse), statuses=_statuses(status), type_name=type_name,
        user_id=user, queue=queue, tag=tag, batch_id=batch, parent_job_id=parent,
        since=_since(since), limit=limit,
    )
    if as_json:
        print_json(rows)
    else:
        print_table(rows, LIST_COLUMNS, spare=LIST_SPARE)


def _show_answer(client: Client, receipt: CommandReceipt, timeout: float) -> None:
    """The receipt and, when it is waited for, the answer, which the exit code tells as well."""
    shown = dataclasses.asdict(receipt)
    if timeout == 0:
        print_json(shown)
        return
    answer = client.answer(receipt, timeout)
    print_json(shown | dataclasses.asdict(answer))
    if answer.is_done:
        return
    whose = f"job {receipt.job_id!r} of user {receipt.user_id!r}"
    if answer.until is not None:
        raise CliError(
            f"nobody has asked for {whose} yet; the cancel is kept until {answer.until} and ends "
            "the job as soon as its request comes", exit_codes.NOT_FOUND,
        )
    if answer.is_unknown_job:
        raise CliError(f"there is no {whose}", exit_codes.NOT_FOUND)
    raise CliError(
        f"the {receipt.command} of {whose} was refused: {answer.reason}", exit_codes.CONFLICT
    )


@jobs_app.command("cancel")
def cancel_job(
    job_id: Annotated[str, typer.Argument(metavar="JOB_ID")],
    user: User,
    reason: Reason = None,
    timeout: AnswerTimeout = ANSWER_SECONDS,
    kafka: o.Kafka = None,
    topic_prefix: o.TopicPrefix = None,
) -> None:
    """End a waiting job, or ask a running one to stop; shows what came of it.

    A job that nobody has asked for yet ends as soon as its request comes, within a day: exit 4.
    """
    with _client(kafka, topic_prefix) as client:
        _show_answer(client, client.cancel(user, job_id, reason=reason, actor="cli"), timeout)


@jobs_app.command("redrive")
def redrive_job(
    job_id: Annotated[str, typer.Argument(metavar="JOB_ID")],
    user: User,
    reason: Reason = None,
    timeout: AnswerTimeout = ANSWER_SECONDS,
    kafka: o.Kafka = None,
    topic_prefix: o.TopicPrefix = None,
) -> None:
    """Run a failed job again, as its next run; shows what came of it."""
    with _client(kafka, topic_prefix) as client:
        _show_answer(client, client.redrive(user, job_id, reason=reason, actor="cli"), timeout)


@app.command(rich_help_panel="Jobs")
def signal(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose job.")],
    job_id: Annotated[str, typer.Argument(metavar="JOB")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the handler waits for.")],
    value: Annotated[
        str, typer.Argument(metavar="[VALUE]", help="What it gets: JSON; - reads stdin.")
    ] = "null",
    actor: Annotated[str, typer.Option("--actor", help="Who signals.")] = "cli",
    timeout: AnswerTimeout = ANSWER_SECONDS,
    kafka: o.Kafka = None,
    topic_prefix: o.TopicPrefix = None,
) -> None:
    """Give a value to a handler that waits (`ctx.wait`); shows what came of it.

    The first signal of a name counts; a later one is refused: exit 8. One that nobody waits for yet
    is kept for a day.
    """
    given = _json(value, "VALUE", 'write JSON such as true, \'"yes"\' or \'{"ok": true}\'')
    with _client(kafka, topic_prefix) as client:
        _show_answer(client, client.signal(user, job_id, name, given, actor=actor), timeout)


def clickhouse_address(given: str | None) -> str:
    """Where to ask: the option, else the settings."""
    from tidemill.agents.settings import CommonSettings, load

    return load(CommonSettings, clickhouse=given).clickhouse


def _statuses(text: str | None) -> tuple[str, ...]:
    from tidemill.schemas.words import State

    chosen = tuple(word.strip() for word in (text or "").split(",") if word.strip())
    for word in chosen:
        if word not in set(State):
            raise CliError(
                f"--status: {word!r} is no status; there are {', '.join(State)}", exit_codes.USAGE
            )
    return chosen


def _since(text: str | None) -> datetime | None:
    from tidemill.history import since_of

    if text is None:
        return None
    try:
        return since_of(text)
    except ValueError as error:
        raise CliError(f"--since: {error}", exit_codes.USAGE) from None


app.add_typer(jobs_app, name="jobs", rich_help_panel="Jobs")
