"""`tidemill schedules`: what asks for jobs by the clock, and settings over those in the code.

Owns the options and what is shown. Refuses to know how a command travels
(`tidemill.agents.schedule_log`).
"""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
import typer

from tidemill.agents import exit_codes
from tidemill.cli import options as o
from tidemill.cli.output import CliError, print_json, print_table

if TYPE_CHECKING:
    from tidemill.agents.schedule_log import ScheduleLog
    from tidemill.schemas.schedules import ScheduleRecord, ScheduleSpec

app = typer.Typer()
schedules_app = typer.Typer(
    help="Look at schedules, set, pause and run them.", no_args_is_help=True
)

COLUMNS: Final = ("name", "plan", "type", "next_at", "state", "overlap", "catch_up", "change")

Name = Annotated[str, typer.Argument(metavar="NAME")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait.")]
ANSWER_SECONDS: Final = 10.0  # the ledger answers within milliseconds


def _log(kafka: str | None, topic_prefix: str | None) -> ScheduleLog:
    from tidemill.agents.schedule_log import ScheduleLog
    from tidemill.agents.settings import CommonSettings, load
    from tidemill.looking import reach
    from tidemill.schemas.topics import Topics

    settings = load(CommonSettings, kafka=kafka, topic_prefix=topic_prefix)
    reach(settings.kafka)
    return ScheduleLog(settings.kafka, Topics(settings.topic_prefix))


def _shown(record: ScheduleRecord) -> dict[str, Any]:
    from tidemill.agents.schedule_log import next_of

    next_at = next_of(record, int(time.time() * 1000))
    return record.model_dump(mode="json") | {
        "next_at": None if next_at is None else _text(next_at),
        "created_at": _text(record.created_at), "changed_at": _text(record.changed_at),
    }


def _text(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")


def _state(record: ScheduleRecord) -> str:
    from tidemill.agents.schedule_log import state_of

    found = state_of(record)
    return record.problem or found if found == "problem" else found


def _plan(spec: ScheduleSpec) -> str:
    from tidemill.agents.schedule_log import rule_of

    return f"{spec.cron} {spec.zone}" if spec.cron else rule_of(spec)


@schedules_app.command("list")
def list_(
    kafka: o.Kafka = None, topic_prefix: o.TopicPrefix = None, as_json: o.AsJson = False
) -> None:
    """All schedules. Their ticks are jobs of the user schedule:NAME."""
    with _log(kafka, topic_prefix) as log:
        records = [log.records[name] for name in sorted(log.records)]
    if as_json:
        print_json([_shown(record) for record in records])
        return
    print_table(
        [
            _shown(one) | one.spec.model_dump() | {"plan": _plan(one.spec), "state": _state(one)}
            for one in records
        ],
        COLUMNS, spare=("change", "catch_up", "overlap"),
    )


@schedules_app.command("show")
def show(name: Name, kafka: o.Kafka = None, topic_prefix: o.TopicPrefix = None) -> None:
    """One schedule, as JSON."""
    with _log(kafka, topic_prefix) as log:
        print_json(_shown(_known(log, name)))


def _known(log: ScheduleLog, name: str) -> ScheduleRecord:
    record = log.records.get(name)
    if record is None:
        raise CliError(
            f"there is no schedule {name!r}; `tidemill schedules list` shows them",
            exit_codes.NOT_FOUND,
        )
    return record


@schedules_app.command("set")
def set_(
    name: Name,
    cron: Annotated[str | None, typer.Option("--cron", help="Such as '0 9 * * *'.")] = None,
    every: Annotated[str | None, typer.Option("--every", help="Such as 90s, 5min, 1h.")] = None,
    zone: Annotated[str | None, typer.Option("--zone", help="Of --cron: Europe/Berlin.")] = None,
    type_name: Annotated[str | None, typer.Option("--type", help="Of the jobs.")] = None,
    payload: Annotated[
        str | None, typer.Option("--payload", metavar="OBJECT", help="A JSON object.")
    ] = None,
    overlap: Annotated[
        str | None,
        typer.Option("--overlap", help="skip, queue_one, queue_all, cancel_old, allow."),
    ] = None,
    catch_up: Annotated[str | None, typer.Option("--catch-up", help="none, last, all.")] = None,
    jitter: Annotated[str | None, typer.Option("--jitter", help="Such as 30s.")] = None,
    gap: Annotated[
        str | None, typer.Option("--gap", help="Local times that do not exist: next, skip.")
    ] = None,
    fold: Annotated[
        str | None, typer.Option("--fold", help="Local times that come twice: first, second, both.")
    ] = None,
    first_now: Annotated[bool, typer.Option("--first-now", help="The first tick at once.")] = False,
    kafka: o.Kafka = None,
    topic_prefix: o.TopicPrefix = None,
    timeout: Timeout = ANSWER_SECONDS,
) -> None:
    """Make a schedule, or change what is given of one; rules over the code until it is removed."""
    given: dict[str, Any] = {
        "type": type_name, "cron": cron, "every_ms": _ms(every, "--every"), "zone": zone,
        "payload": _object(payload), "overlap": overlap, "catch_up": catch_up,
        "jitter_ms": _ms(jitter, "--jitter"), "gap": gap, "fold": fold,
        "is_first_now": True if first_now else None,
    }
    from tidemill.agents.schedule_log import merged

    given = {field: value for field, value in given.items() if value is not None}
    if "cron" in given and "every_ms" in given:
        raise CliError("--cron and --every: give one of them", exit_codes.USAGE)
    if type_name is not None:
        _spec(given | ({} if "cron" in given or "every_ms" in given else {"every_ms": 60_000}))
    with _log(kafka, topic_prefix) as log:
        _ask(log, "set", name, timeout, spec=_spec(merged(log.records.get(name), given)))


def _spec(fields: dict[str, Any]) -> ScheduleSpec:
    from pydantic import ValidationError

    from tidemill.agents.schedule_log import problem_of
    from tidemill.schemas.first_problem import first_problem
    from tidemill.schemas.schedules import ScheduleSpec

    if "type" not in fields:
        raise CliError("--type: a new schedule needs the type of its jobs", exit_codes.USAGE)
    try:
        spec = ScheduleSpec(**fields)
    except ValidationError as error:
        first = first_problem(error)
        field = first.path.removesuffix("_ms").replace("_", "-")
        raise CliError(f"--{field}: {first.message}; mend it", exit_codes.USAGE) from None
    wrong = problem_of(spec)
    if wrong is not None:
        raise CliError(f"--{wrong[0]}: {wrong[1]}", exit_codes.USAGE)
    return spec


def _ms(text: str | None, option: str) -> int | None:
    from tidemill.agents.worker.errors import JobDefinitionError
    from tidemill.policies import seconds_of

    if text is None:
        return None
    try:
        return round(seconds_of(text, option) * 1000)
    except JobDefinitionError as error:
        raise CliError(str(error), exit_codes.USAGE) from None


def _object(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise CliError(f"--payload: {error}; write an object", exit_codes.USAGE) from None
    if not isinstance(value, dict):
        raise CliError("--payload: a payload is a JSON object", exit_codes.USAGE)
    return value


def _ask(log: ScheduleLog, word: Any, name: str, timeout: float, **fields: Any) -> None:
    from pydantic import ValidationError

    from tidemill.schemas.first_problem import first_problem
    from tidemill.schemas.schedules import ScheduleCommand

    try:
        command = ScheduleCommand(
            command="schedule", word=word, name=name, command_id=uuid.uuid4().hex, actor="cli",
            **fields,
        )
    except ValidationError as error:
        first = first_problem(error)
        raise CliError(f"{first.path}: {first.message}; mend it", exit_codes.USAGE) from None
    record = log.ask(command, timeout)
    if record is None:
        print_json({"name": name, "change": "removed"})
        return
    print_json(_shown(record))
    if record.refused is not None:
        raise CliError(
            f"the {word} of schedule {name!r} was refused: {record.refused}", exit_codes.CONFLICT
        )


def _simple(word: str, meaning: str) -> None:
    @schedules_app.command(word, help=meaning)
    def command(
        name: Name, kafka: o.Kafka = None, topic_prefix: o.TopicPrefix = None,
        timeout: Timeout = ANSWER_SECONDS,
    ) -> None:
        with _log(kafka, topic_prefix) as log:
            _known(log, name)
            _ask(log, word, name, timeout)


_simple("run", "A tick now; the id of its job ends with the command's.")
_simple("pause", "No ticks until it is resumed.")
_simple("resume", "Ticks again, from now on.")
_simple("remove", "Forget what was set; a schedule that no code has is gone.")


@schedules_app.command("backfill")
def backfill(
    name: Name,
    since: Annotated[str, typer.Option("--since", help="Ticks later than this instant,")],
    until: Annotated[str, typer.Option("--until", help="up to and with this one.")],
    only_count: Annotated[
        bool, typer.Option("--count", help="Only say how many ticks that are.")
    ] = False,
    kafka: o.Kafka = None,
    topic_prefix: o.TopicPrefix = None,
    timeout: Timeout = ANSWER_SECONDS,
) -> None:
    """Ask for the ticks of a past range, at most 1,000; they are counted first."""
    from tidemill.agents.schedule_log import count_of
    from tidemill.schemas.schedules import BACKFILL_MAX

    begin, end = _instant(since, "--since"), _instant(until, "--until")
    with _log(kafka, topic_prefix) as log:
        found = count_of(
            _known(log, name), int(begin.timestamp() * 1000), int(end.timestamp() * 1000)
        )
        if only_count:
            print_json({"name": name, "ticks": found.number, "is_exact": found.is_exact})
            return
        if found.number > BACKFILL_MAX or not found.number:
            raise CliError(
                f"the range has {found.number} ticks; take one with 1 to {BACKFILL_MAX}",
                exit_codes.USAGE,
            )
        _ask(log, "backfill", name, timeout, since=begin, until=end)


def _instant(text: str, option: str) -> datetime:
    from tidemill.cli.instants import instant_of

    try:
        return instant_of(text, datetime.now(UTC))
    except ValueError as error:
        raise CliError(f"{option}: {error}", exit_codes.USAGE) from None


app.add_typer(schedules_app, name="schedules", rich_help_panel="Jobs")
