"""What may be asked for: the request on `jobs.requested` and the command on `jobs.commands`.

Owns the fields, their bounds and their meaning. Refuses to know how bytes become a dict
(`tidemill.schemas.codec`) and what the engine answers (`streams`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
)

from tidemill.schemas.words import Priority

ID_LENGTH_MAX: Final = 256  # characters; ids are keys of topics and tables
TYPE_LENGTH_MAX: Final = 128  # characters
QUEUE_LENGTH_MAX: Final = 100  # characters; "jobs.ready.<queue>" must fit Kafka's 249
TAGS_MAX: Final = 32  # entries
TAG_LENGTH_MAX: Final = 128  # characters
ATTEMPTS_MAX: Final = 100
TIMEOUT_SECONDS_MAX: Final = 86_400.0  # seconds, a day
REQUEST_BYTES_MAX: Final = 1_048_576  # bytes of a record's value, 1 MiB
RESULT_BYTES_MAX: Final = 786_432  # bytes of a result's JSON; an event around it stays below 1 MiB
STEP_BYTES_MAX: Final = 262_144  # bytes of the JSON that a step of a handler returned, 256 KiB
# Bytes of all that a job remembers: it goes to the worker with each dispatch, and both hold it.
MEMORY_BYTES_MAX: Final = 16 * 1_048_576
GATHER_MEMBERS_MAX: Final = 20_000  # jobs that a handler may ask for and wait for at once
GATHER_BYTES_MAX: Final = 16 * 1_048_576  # bytes of their requests as JSON: the ledger keeps them
GATHER_PART_BYTES_MAX: Final = 262_144  # bytes of those in one record, unless it is a single one
SLEEP_MS_MAX: Final = 366 * 86_400_000  # ms of one sleep, or of a wait's time-out, a year
SIGNAL_BYTES_MAX: Final = 65_536  # bytes of a signal's value as JSON: an answer, not a document
STEP_NAME_PATTERN: Final = r"^[^\x00-\x1f\x7f]{1,128}$"  # 128 characters, none of control
NESTED_MAX: Final = 200  # nested values of a result; orjson itself stops at 254
# One bound for every instant: of a request, of an event, of a row.
INSTANT_MIN: Final = datetime(1970, 1, 1, tzinfo=UTC)
INSTANT_MAX: Final = datetime(2299, 12, 31, tzinfo=UTC)  # where ClickHouse's DateTime64(3) ends

ID_PATTERN: Final = r"^[^\x00-\x1f\x7f]+$"  # no control characters
TYPE_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9_.:-]*$"
QUEUE_PATTERN: Final = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"  # what a Kafka topic's name may hold

Id = Annotated[
    str, StringConstraints(min_length=1, max_length=ID_LENGTH_MAX, pattern=ID_PATTERN, strict=True)
]
TypeName = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=TYPE_LENGTH_MAX, pattern=TYPE_PATTERN, strict=True
    ),
]
QueueName = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=QUEUE_LENGTH_MAX, pattern=QUEUE_PATTERN, strict=True
    ),
]
WaitName = Annotated[str, StringConstraints(pattern=STEP_NAME_PATTERN, strict=True)]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=TAG_LENGTH_MAX, strict=True)]


def parse_instant(value: object) -> object:
    """RFC 3339 text (with an offset) or epoch milliseconds -> aware datetime; else an error.

    Raises ValueError, which pydantic turns into an error that names the field.
    """
    if isinstance(value, datetime):
        return _in_range(value if value.tzinfo else value.replace(tzinfo=UTC))
    if isinstance(value, str):
        try:
            parsed = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("write an RFC 3339 instant such as 2026-01-31T09:00:00Z") from None
        if parsed.tzinfo is None:
            raise ValueError("add an offset, such as Z, to the instant")
        return _in_range(parsed)
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return _in_range(datetime.fromtimestamp(value / 1000, tz=UTC))
        except (OverflowError, ValueError, OSError):
            raise ValueError("epoch milliseconds are out of range") from None
    raise ValueError("write an RFC 3339 instant or epoch milliseconds")


def _in_range(instant: datetime) -> datetime:
    if not INSTANT_MIN <= instant <= INSTANT_MAX:
        raise ValueError("write an instant between the years 1970 and 2299")
    return instant


Instant = Annotated[datetime, BeforeValidator(parse_instant)]


class JobRequest(BaseModel):
    """One record on `jobs.requested`. `type` and `user_id` are required."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: TypeName = Field(description="Which handler runs the job.")
    user_id: Id = Field(
        description="Whose job it is: the key of order, limits and fairness. Jobs without a "
        "person use `system:<name>`."
    )
    job_id: Id | None = Field(
        default=None,
        description="Idempotency key within the user. Absent: derived from topic, partition and "
        "offset of the record, so that a replay gives the same id.",
    )
    payload: dict[str, Any] = Field(
        default_factory=dict, description="Input of the handler, validated by its model."
    )
    queue: QueueName | None = Field(default=None, description="Overrides the handler's queue.")
    priority: Priority = Field(default=Priority.MEDIUM, description="high, medium or low.")
    run_at: Instant | None = Field(
        default=None, description="Not before this instant (RFC 3339 or epoch milliseconds)."
    )
    expires_at: Instant | None = Field(
        default=None, description="Ends as `expired` when it has not been dispatched by then."
    )
    unique_key: Id | None = Field(
        default=None,
        description="No second live job of this user has the same key: a second request ends as "
        "`skipped` with reason `duplicate`.",
    )
    max_attempts: Annotated[int, Field(ge=1, le=ATTEMPTS_MAX, strict=True)] | None = Field(
        default=None, description="Overrides the handler's number of attempts, first included."
    )
    timeout_seconds: Annotated[float, Field(gt=0, le=TIMEOUT_SECONDS_MAX)] | None = Field(
        default=None, description="Overrides the handler's time-out of one attempt, in seconds."
    )
    source: Tag | None = Field(default=None, description="Where it came from, free text.")
    tags: tuple[Tag, ...] = Field(
        default=(), max_length=TAGS_MAX, description="Free words to find the job by."
    )
    batch_id: Id | None = Field(default=None, description="Groups jobs.")
    parent_job_id: Id | None = Field(default=None, description="The job that asked for this one.")


def holds_nan(value: Any, depth: int = 0) -> bool:
    """Whether a float that JSON cannot hold is somewhere in `value`; orjson writes it as null.

    Models and dataclasses say themselves how they write such a float: `tidemill.schemas.portable`.
    """
    if isinstance(value, float):
        return not math.isfinite(value)
    if depth > NESTED_MAX:
        return False
    if isinstance(value, Enum):
        return holds_nan(value.value, depth + 1)
    if isinstance(value, Mapping):
        return any(holds_nan(each, depth + 1) for each in value.values())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return any(holds_nan(each, depth + 1) for each in value)
    return False


class Command(BaseModel):
    """One record on `jobs.commands`, key = user_id. The answer is the event that it causes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: Literal["cancel", "redrive"] = Field(
        description="cancel: end a waiting job, ask a running one to stop. redrive: run a failed "
        "job again as a new `run`."
    )
    user_id: Id = Field(description="Whose job.")
    job_id: Id = Field(description="Which job.")
    command_id: Id | None = Field(default=None, description="Kept in the event as causation.")
    actor: Tag | None = Field(default=None, description="Who asks.")
    reason: Tag | None = Field(default=None, description="Why, free text.")


class SignalCommand(BaseModel):
    """A record on `jobs.commands` for a handler that waits, key = user_id. The first signal of a
    name counts; one that nobody waits for yet is kept for a day. The answer is the event that it
    causes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: Literal["signal"]
    user_id: Id = Field(description="Whose job.")
    job_id: Id = Field(description="Which job.")
    name: WaitName = Field(description="The name under which the handler waits.")
    value: Any = Field(
        default=None, description="What the handler gets: any JSON of at most 64 KiB."
    )
    command_id: Id | None = Field(default=None, description="For the sender's own records.")
    actor: Tag | None = Field(default=None, description="Who signals; kept in the job's history.")

    @field_validator("value")
    @classmethod
    def _fits(cls, value: Any) -> Any:
        size = len(orjson.dumps(value))
        if size > SIGNAL_BYTES_MAX:
            raise ValueError(
                f"it has {size} bytes of JSON, at most {SIGNAL_BYTES_MAX} are taken; store the "
                "data elsewhere and send a reference"
            )
        return value
