"""What the pages say: formats of numbers and times, tones of states, the steps of a job's story.

Owns the words and figures between a row and a template. Refuses to know HTTP, SQL and HTML; text
from users passes through unchanged and is escaped by the templates.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from tidemill.agents.callers import http_address
from tidemill.agents.clickhouse.engine import CHDB_SCHEME
from tidemill.agents.settings import DEFAULT_HOST, ApiSettings
from tidemill.schemas.safe_text import safe_text
from tidemill.schemas.words import EventKind, Reason, State

DASH: Final = "–"  # shown where there is no number
JSON_LENGTH_MAX: Final = 20_000  # characters of a payload or result that a page shows
SECOND_MS: Final = 1_000.0
MINUTE_MS: Final = 60 * SECOND_MS
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS

_SHOWN_APART: Final = ("payload", "result", "trace")

TONES: Final[dict[str, str]] = {
    State.SCHEDULED: "wait",
    State.PENDING: "wait",
    State.RETRYING: "warn",
    State.AWAITING: "wait",
    State.DISPATCHED: "run",
    State.RUNNING: "run",
    State.SUCCEEDED: "good",
    State.FAILED: "bad",
    State.CANCELLED: "mute",
    State.SKIPPED: "mute",
    State.EXPIRED: "mute",
}
"""State -> the colour that it has everywhere."""

EVENT_TONES: Final[dict[str, str]] = {
    EventKind.ATTEMPT_FAILED: "bad",
    EventKind.ATTEMPT_SUCCEEDED: "good",
    EventKind.RETRY_SCHEDULED: "warn",
    EventKind.RESCUED: "warn",
    EventKind.RETURNED: "warn",
    EventKind.DEFERRED: "warn",
    EventKind.CANCEL_REQUESTED: "warn",
}
EVENT_WORDS: Final[dict[str, str]] = {
    EventKind.REQUESTED: "Requested",
    EventKind.SCHEDULED: "Scheduled",
    EventKind.DEFERRED: "Deferred",
    EventKind.DISPATCHED: "Dispatched to a worker",
    EventKind.ATTEMPT_STARTED: "Attempt started",
    EventKind.PROGRESSED: "Progress",
    EventKind.ATTEMPT_SUCCEEDED: "Attempt succeeded",
    EventKind.ATTEMPT_FAILED: "Attempt failed",
    EventKind.RETRY_SCHEDULED: "Retry scheduled",
    EventKind.RETURNED: "Handed back",
    EventKind.RESCUED: "Rescued",
    EventKind.STEP_COMPLETED: "Step completed",
    EventKind.SUSPENDED: "Suspended: its handler waits",
    EventKind.RESUMED: "Resumed",
    EventKind.CANCEL_REQUESTED: "Cancel requested",
    EventKind.REDRIVEN: "Redriven",
    EventKind.DUPLICATE_IGNORED: "Duplicate request ignored",
    EventKind.CONFLICT_IGNORED: "Conflicting request ignored",
    EventKind.OUTCOME_IGNORED: "Late outcome ignored",
    EventKind.COMMAND_REFUSED: "Command refused",
    EventKind.CANCEL_KEPT: "Cancel kept for the request to come",
    EventKind.SIGNAL_KEPT: "Signal kept until the handler waits for it",
}


WAITS_OF_HANDLERS: Final = (
    EventKind.STEP_COMPLETED, EventKind.SUSPENDED, EventKind.RESUMED, EventKind.SIGNAL_KEPT,
)
KEPT: Final = (EventKind.CANCEL_KEPT, EventKind.SIGNAL_KEPT)

MISSING_WORDS: Final[dict[str, str]] = {
    Reason.QUEUE_NOT_SERVED: "no living worker serves its queue",
    Reason.TYPE_NOT_RUN: "no living worker of its queue runs this type",
    Reason.UNKNOWN_TYPE: "no worker has told of this type",
}
"""Why nobody can run a job: reason -> what is missing."""


def number(value: float | None) -> str:
    """1234567 -> "1,234,567"."""
    return DASH if value is None else f"{value:,.0f}"


def rate(value: float | None) -> str:
    """Per second: more digits for small rates, so that 0.03/s is not 0."""
    if value is None:
        return DASH
    if value and value < 0.1:
        return f"{value:.2f}"
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """0.4217 -> "0.42 %"."""
    if value is None:
        return DASH
    if value and value < 0.01:
        return "<0.01 %"
    return f"{value:.2f} %" if value < 10 else f"{value:.1f} %"


def duration(ms: float | None) -> str:
    """Milliseconds in the unit that a person would say."""
    if ms is None:
        return DASH
    if ms < SECOND_MS:
        return f"{ms:.0f} ms"
    if ms < 10 * SECOND_MS:
        return f"{ms / SECOND_MS:.2f} s"
    if ms < MINUTE_MS:
        return f"{ms / SECOND_MS:.1f} s"
    if ms < HOUR_MS:
        return _two(ms, MINUTE_MS, "min", SECOND_MS, "s")
    if ms < DAY_MS:
        return _two(ms, HOUR_MS, "h", MINUTE_MS, "min")
    return _two(ms, DAY_MS, "d", HOUR_MS, "h")


def _two(ms: float, big: float, big_word: str, small: float, small_word: str) -> str:
    whole, rest = divmod(round(ms / small) * small, big)
    return f"{whole:.0f} {big_word} {rest / small:.0f} {small_word}"


def moment_of(text: str) -> datetime:
    """ClickHouse's ISO text as an instant."""
    return datetime.fromisoformat(text).astimezone(UTC)


def milliseconds_between(earlier: str, later: str) -> float:
    """From one ISO text to another; negative when they are the other way round."""
    return (moment_of(later) - moment_of(earlier)).total_seconds() * SECOND_MS


def absolute(text: str | None) -> str:
    """ "2026-11-22T01:52:13.123Z" -> "2026-11-22 01:52:13"."""
    return DASH if not text else moment_of(text).strftime("%Y-%m-%d %H:%M:%S")


def clock(text: str | None) -> str:
    """The time of day with milliseconds, for a timeline."""
    return DASH if not text else moment_of(text).strftime("%H:%M:%S.%f")[:-3]


def missing(reason: str) -> str:
    """What a waiting job lacks, in words; other reasons as they are."""
    return MISSING_WORDS.get(reason, reason.replace("_", " "))


def tone(state: str) -> str:
    """The colour of a state."""
    return TONES.get(state, "mute")


def pretty_json(value: Any) -> str:
    """JSON for reading; what is too long for a page is cut and says so."""
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    if len(text) > JSON_LENGTH_MAX:
        rest = len(text) - JSON_LENGTH_MAX
        return f"{text[:JSON_LENGTH_MAX]}\n… {rest:,} characters more: see the API"
    return text


@dataclass(frozen=True, slots=True)
class Step:
    """One event of a story as it is shown."""

    title: str
    tone: str
    at: str
    since_start_ms: float
    gap_ms: float | None  # since the step before; None for the first
    event: dict[str, Any]
    note: str
    data: dict[str, Any] | None
    is_audit: bool
    is_new_run: bool
    tells_error: bool  # False where the step before told the same one
    trace: str  # where the attempt raised; "" when there is none


@dataclass(frozen=True, slots=True)
class Story:
    """All of a job's page that comes from its events."""

    steps: tuple[Step, ...]
    payload: Any
    result: Any
    has_payload: bool
    has_result: bool

    @property
    def wait(self) -> dict[str, Any] | None:
        """What the handler waits for: `kind` and `name`; None when it does not wait."""
        for step in reversed(self.steps):
            if step.event["event"] == EventKind.SUSPENDED:
                return step.data
            if not step.is_audit and step.event["event"] != EventKind.PROGRESSED:
                return None
        return None


def parse_data(text: str) -> dict[str, Any] | None:
    """The `data` column; what is no JSON object is kept as it is, under "text"."""
    if not text:
        return None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {"text": text}
    return value if isinstance(value, dict) else {"value": value}


def build_story(events: list[dict[str, Any]], incarnation: int) -> Story:
    """The steps of one incarnation, with the time between them."""
    # What came before the request knows of no incarnation: it is 0.
    mine = [event for event in events if event["incarnation"] in (incarnation, 0)] or events
    steps: list[Step] = []
    payload = result = None
    has_payload = has_result = False
    for event in mine:
        data = parse_data(event["data"])
        if event["event"] == EventKind.REQUESTED and data and "payload" in data:
            payload, has_payload = data["payload"], True
        if event["event"] == EventKind.SUCCEEDED and data and "result" in data:
            result, has_result = data["result"], True
        steps.append(_step(event, data, steps, mine[0]))
    return Story(tuple(steps), payload, result, has_payload, has_result)


def _step(
    event: dict[str, Any], data: dict[str, Any] | None, before: list[Step], first: dict[str, Any]
) -> Step:
    kind = event["event"]
    at: str = event["occurred_at"]
    is_audit = event["sequence"] == 0
    color = EVENT_TONES.get(kind) or tone(event["state_after"])
    is_told = bool(before) and _is_same_error(before[-1], event)
    return Step(
        title=EVENT_WORDS.get(kind, kind.replace("_", " ").capitalize()),
        tone="mute" if is_audit else color,
        at=at,
        since_start_ms=milliseconds_between(first["occurred_at"], at),
        gap_ms=milliseconds_between(before[-1].at, at) if before else None,
        event=event,
        note=_note(event, data),
        data={k: v for k, v in (data or {}).items() if k not in _SHOWN_APART} or None,
        is_audit=is_audit,
        is_new_run=kind == EventKind.REDRIVEN
        or (kind == EventKind.REQUESTED and event["run"] > 1),
        tells_error=bool(event["error_code"]) and not is_told,
        trace=safe_text(str((data or {}).get("trace", ""))),
    )


def _is_same_error(step: Step, event: dict[str, Any]) -> bool:
    names = ("error_code", "error_message", "attempt")
    return all(step.event[name] == event[name] for name in names)


def _note(event: dict[str, Any], data: dict[str, Any] | None) -> str:
    """What is worth saying beside the title."""
    parts: list[str] = []
    if event["reason"]:
        parts.append(missing(event["reason"]))
    if event["event"] == EventKind.PROGRESSED and data:
        told = [str(data[key]) for key in ("stage", "message") if data.get(key)]
        percent_done = data.get("percent")
        parts += ([f"{percent_done} %"] if percent_done is not None else []) + told
    if event["event"] in WAITS_OF_HANDLERS and data and data.get("name"):
        parts.append(f"{data.get('kind', '')} {data['name']}".strip())
        if data.get("actor"):
            parts.append(f"by {data['actor']}")
    if event["run_ms"] is not None and event["event"] in (
        EventKind.ATTEMPT_SUCCEEDED,
        EventKind.ATTEMPT_FAILED,
    ):
        parts.append(f"ran {duration(event['run_ms'])}")
    if event["due_at"]:
        rest_ms = milliseconds_between(event["occurred_at"], event["due_at"])
        word = "for" if event["event"] in KEPT else "goes on in"
        if event["reason"] in MISSING_WORDS:
            word = "given up in"
        parts += [f"{word} {duration(rest_ms)}"] if rest_ms > 0 else []
    if event["worker_id"]:
        parts.append(f"worker {event['worker_id']}")
    return " · ".join(parts)


@dataclass(frozen=True, slots=True)
class Ports:
    """The options by which a copied command reaches this installation; none that are defaults."""

    kafka: tuple[str, ...] = ()
    clickhouse: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: ApiSettings) -> Ports:
        """Those of a process with these settings. An address with a password is left out."""
        usual = type(settings).model_fields
        kafka: list[str] = []
        if settings.kafka != usual["kafka"].default:
            kafka += ["--kafka", settings.kafka]
        if settings.topic_prefix:
            kafka += ["--topic-prefix", settings.topic_prefix]
        address = settings.clickhouse
        if address.startswith(CHDB_SCHEME):
            # The page is in the process that serves the folder.
            address = http_address(DEFAULT_HOST, settings.clickhouse_port)
        is_told = address != usual["clickhouse"].default and "@" not in address
        return cls(tuple(kafka), ("--clickhouse", address) if is_told else ())

    def first_job(self) -> str:
        """The command line that asks for a first job and waits for it."""
        words = ["tidemill", "enqueue", "greet", "--user", "ada", "--json", '{"name": "Ada"}']
        return shlex.join([*words, "--wait", *self.kafka, *self.clickhouse])

    def show(self, job_id: str, user_id: str) -> str:
        """The command line that shows a job."""
        words = ["tidemill", "jobs", "show", job_id, "--user", user_id]
        return shlex.join([*words, *self.clickhouse])

    def signal(self, job: dict[str, Any], name: str) -> str:
        """The command line that gives a value to a handler that waits."""
        words = ["tidemill", "signal", job["user_id"], job["job_id"], name, "true"]
        return shlex.join([*words, *self.kafka])

    def again(self, job: dict[str, Any], payload: Any) -> str:
        """The command line that asks for the same work anew."""
        words = [
            "tidemill", "enqueue", job["type"], "--user", job["user_id"],
            "--json", orjson.dumps(payload).decode(),
        ]
        return shlex.join([*words, *self.kafka])
