"""The settings of every role: names, defaults with reasons, bounds, and where a value is from.

Owns `TIDEMILL_*` and the classes that roles receive. Refuses to know what a role does with them and
how the command line spells its options: it only receives what was given there.

A value comes from the first of: the command line, the environment (`TIDEMILL_KAFKA`, nesting with
`__`), the default.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tidemill.agents.callers import is_loopback, name_called
from tidemill.schemas.requests import QUEUE_LENGTH_MAX, QUEUE_PATTERN
from tidemill.schemas.topics import DEV_PARTITIONS
from tidemill.streams.policies.rescue import INTERRUPTIONS_MAX

ENV_PREFIX: Final = "TIDEMILL_"
DEFAULT_HOST: Final = "127.0.0.1"  # loopback: nothing listens to the network unless it is told to
DEFAULT_KAFKA_PORT: Final = 9092  # Kafka's own
DEFAULT_CLICKHOUSE_PORT: Final = 8123  # ClickHouse's own HTTP port
DEFAULT_HTTP_PORT: Final = 8080
DEFAULT_DATA: Final = Path(".tidemill")  # below the folder where `tidemill dev` was started
PARTITIONS_MAX: Final = 1024  # the ledger's N; 64 is plenty for one cluster
DEDUPE_RETENTION_SECONDS: Final = 86_400.0  # a day: the longest that a producer is likely to retry
WORKER_CONCURRENCY: Final = 100  # async handlers at once in one worker; they mostly wait
WORKER_THREADS: Final = 32  # `def` handlers at once; each is a thread of about 8 MB of stack space
CONCURRENCY_MAX: Final = 10_000
THREADS_MAX: Final = 1_000
PROCESSES_MAX: Final = 256
STOP_GRACE_SECONDS: Final = 25.0  # running jobs may finish; orchestrators kill after 30 s
STALL_SECONDS: Final = 60.0  # our own code never stands still for so long
# Code of users may: it ends some day, and what is ended begins anew. Longer than the time-out of a
# job, which a handler that holds the interpreter also keeps from being told.
WORKER_STALL_SECONDS: Final = 600.0
CANCEL_GRACE_SECONDS: Final = 2.0  # a person waits for the job's end
CHILD_START_SECONDS: Final = 60.0  # large libraries load in ten on a busy machine
SINK_BATCH_ROWS: Final = 50_000  # rows in one insert: small inserts make too many parts
SINK_BATCH_SECONDS: Final = 1.0  # an event is visible within 3 s, but in a burst
PREFIX_PATTERN: Final = r"^[A-Za-z0-9._-]*$"  # what a Kafka topic's name may hold
PREFIX_LENGTH_MAX: Final = 80  # characters; prefix and queue together fit Kafka's 249

_ADDRESS: Final = re.compile(r"^(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})$")
_TOKEN: Final = re.compile(r"^[\x20-\x7e]+$")
_PORT: Final = re.compile(r"^[^:]*:[0-9]+$|\]:[0-9]+$")
_QUEUE: Final = re.compile(QUEUE_PATTERN)
_SETTINGS: Final = SettingsConfigDict(
    env_prefix=ENV_PREFIX, env_nested_delimiter="__", env_ignore_empty=True, extra="forbid",
    frozen=True,
)
EMPTY_OPTIONS: Final = frozenset({"topic_prefix"})
"""Options for which "" says something: no prefix, whatever the environment has."""

S = TypeVar("S", bound="CommonSettings")


def is_blank(value: object) -> bool:
    """Whether this is text without a word in it: it counts as no value, wherever it comes from."""
    return isinstance(value, str) and not value.strip()


class SettingsError(Exception):
    """A setting that cannot be used. The text names the setting, the reason and the way out."""


class CommonSettings(BaseSettings):
    """What every role knows."""

    model_config = _SETTINGS

    kafka: str = Field(
        default=f"{DEFAULT_HOST}:{DEFAULT_KAFKA_PORT}",
        description="Kafka's bootstrap servers: HOST:PORT, several with commas.",
    )
    topic_prefix: str = Field(
        default="",
        pattern=PREFIX_PATTERN,
        max_length=PREFIX_LENGTH_MAX,
        description="In front of every topic and group: several installations on one cluster.",
    )
    partitions: int = Field(
        default=DEV_PARTITIONS,
        ge=1,
        le=PARTITIONS_MAX,
        description="Partitions of the ledger's topics. Fixed once the topics exist.",
    )
    clickhouse: str = Field(
        default=f"http://{DEFAULT_HOST}:{DEFAULT_CLICKHOUSE_PORT}",
        description="ClickHouse: http(s)://[USER:PASSWORD@]HOST:PORT, or chdb:///FOLDER.",
    )
    data: Path = Field(default=DEFAULT_DATA, description="Folder of the embedded stack.")
    log_format: Literal["console", "json"] = Field(
        default="console", description="console for people, json for machines."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lines below this are left out."
    )
    http_host: str = Field(
        default=DEFAULT_HOST, description="Address of the page and the API. Loopback by default."
    )
    http_port: int = Field(
        default=DEFAULT_HTTP_PORT, ge=0, le=65_535, description="0: any free port."
    )
    clickhouse_port: int = Field(
        default=DEFAULT_CLICKHOUSE_PORT,
        ge=0,
        le=65_535,
        description="Port of the embedded ClickHouse interface. 0: any free port.",
    )
    stall_seconds: float = Field(
        default=STALL_SECONDS,
        gt=0,
        description="How long the process may stand still, its loop held by one step of code; then "
        "it ends with exit code 70 and says where it stood.",
    )
    token: SecretStr | None = Field(
        default=None, description="Bearer token of the API; required when it is not on loopback."
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_blanks(cls, values: Any) -> Any:
        """Empty or blank text is no value: a variable that is set to nothing is not set."""
        return {name: value for name, value in values.items() if not is_blank(value)}

    @field_validator("token")
    @classmethod
    def _check_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        text = value.get_secret_value().strip()
        if not text:
            return None
        if not _TOKEN.match(text):
            raise ValueError("use ASCII letters, digits and signs only: it travels in a header")
        return SecretStr(text)

    @field_validator("kafka")
    @classmethod
    def _check_kafka(cls, value: str) -> str:
        for address in value.split(","):
            match = _ADDRESS.match(address.strip())
            if match is None or not 0 < int(match[2]) <= 65_535:
                raise ValueError(f"{address!r} is not HOST:PORT; write for example 127.0.0.1:9092")
        return value

    @field_validator("clickhouse")
    @classmethod
    def _check_clickhouse(cls, value: str) -> str:
        if not value.startswith(("http://", "https://", "chdb://")):
            raise ValueError("write http://HOST:PORT, https://HOST:PORT or chdb:///FOLDER")
        return value


class LedgerSettings(CommonSettings):
    """The ledger."""

    dedupe_retention_seconds: float = Field(
        default=DEDUPE_RETENTION_SECONDS,
        gt=0,
        description="How long an ended job's id is remembered: a repeat within it changes nothing.",
    )
    public_compression: Literal["gzip", "zstd", "none"] = Field(
        default="gzip",
        description="Of the topics that others read. Every client reads gzip; zstd is half as "
        "large, and some clients need an extra library for it.",
    )
    interruptions_max: int = Field(
        default=INTERRUPTIONS_MAX,
        ge=0,
        description="Stops of its workers that a run of a job survives while it runs; the next one "
        "fails it as INTERRUPTED. The same for all ledgers.",
    )
    instance_id: str | None = Field(
        default=None,
        description="Name of this process, the same after a restart, unique in the cluster: its "
        "partitions then come back at once. None: a name by host and process id.",
    )
    metrics_port: int | None = Field(
        default=None, ge=0, le=65_535,
        description="Port on which this process serves `/metrics` to Prometheus: counts alone, no "
        "ids. None: no port. 0: any free one, told when it is ready.",
    )
    metrics_host: str = Field(
        default=DEFAULT_HOST, description="Address of that port. Loopback by default."
    )
    accept_gaps: bool = Field(
        default=False,
        description="Go on where records of an input were deleted before they were decided, and "
        "tell of each gap on jobs.dead; else the ledger ends with exit code 65.",
    )


def _default_worker_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-0"


def _processors() -> int:
    return os.cpu_count() or 1


class WorkerSettings(CommonSettings):
    """A worker."""

    queues: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        default=None, description="Queues to serve, with commas; None: those of its handlers."
    )
    concurrency: int = Field(
        default=WORKER_CONCURRENCY,
        ge=1,
        le=CONCURRENCY_MAX,
        description="async handlers at once.",
    )
    threads: int = Field(
        default=WORKER_THREADS, ge=1, le=THREADS_MAX, description="def handlers at once."
    )
    processes: int = Field(
        default_factory=_processors,
        ge=1,
        le=PROCESSES_MAX,
        description="process=True handlers at once. Default: the processors of the machine.",
    )
    worker_id: str = Field(
        default_factory=_default_worker_id,
        min_length=1,
        max_length=200,
        description="Name of this worker, the same after a restart, unique in the cluster.",
    )
    stop_grace_seconds: float = Field(
        default=STOP_GRACE_SECONDS,
        ge=0,
        description="How long running jobs may finish on a stop; then they are given back.",
    )
    stall_seconds: float = Field(
        default=WORKER_STALL_SECONDS,
        gt=0,
        description="How long code of a handler may hold the whole worker still, or 30 s above the "
        "longest time-out of its jobs where that is more; then it is ended, its attempts are "
        "rescued, and the log says where it stood.",
    )
    cancel_grace_seconds: float = Field(
        default=CANCEL_GRACE_SECONDS,
        ge=0,
        description="How long a handler that takes the context may go on after a cancel; then it "
        "is ended by force.",
    )
    child_start_seconds: float = Field(
        default=CHILD_START_SECONDS,
        gt=0,
        description="How long a child process of process=True handlers may load the modules; then "
        "it is ended and another one is tried.",
    )
    traces: bool = Field(
        default=True,
        description="Keep the stack trace of an attempt that raised, or took too long, in its "
        "event, 8,192 characters at most. It may hold what an exception says.",
    )

    @field_validator("queues", mode="before")
    @classmethod
    def _split_queues(cls, value: object) -> object:
        if isinstance(value, str):
            value = tuple(name.strip() for name in value.split(",") if name.strip())
        if not value:
            return None
        return value

    @field_validator("queues")
    @classmethod
    def _check_queues(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in value or ():
            if len(name) > QUEUE_LENGTH_MAX or _QUEUE.match(name) is None:
                raise ValueError(
                    f"queue {name!r}: letters, digits, '.', '_' and '-', at most "
                    f"{QUEUE_LENGTH_MAX} characters"
                )
        return value


class SinkSettings(CommonSettings):
    """The sink; `clickhouse` is where it writes."""

    batch_rows: int = Field(
        default=SINK_BATCH_ROWS, ge=1, le=1_000_000, description="Rows in one insert, at most."
    )
    batch_seconds: float = Field(
        default=SINK_BATCH_SECONDS, gt=0, le=60,
        description="An insert waits at most this long; 5 s while 40,000 rows/s arrive.",
    )
    instance_id: str | None = Field(
        default=None, description="Name of this process, the same after a restart."
    )


class ApiSettings(CommonSettings):
    """The HTTP API and the page; `clickhouse` is where it reads."""

    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Names beside loopback's and http_host by which callers may call, with commas.",
    )

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip().lower() for name in value.split(",") if name.strip())
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name_called({"host": name}) != name.strip("[]").lower() or _PORT.search(name):
                raise ValueError(
                    f"{name!r} is no host's name; write for example tidemill.example, without a "
                    "port and without *"
                )
        return tuple(name.strip("[]").lower() for name in value)

    @model_validator(mode="after")
    def _need_token_off_loopback(self) -> Self:
        if self.token is None and not is_loopback(self.http_host):
            raise ValueError(
                f"http_host {self.http_host!r} can be reached from other machines, so a token is "
                f"required; set {ENV_PREFIX}TOKEN, or bind to {DEFAULT_HOST}"
            )
        return self


class StackSettings(SinkSettings, ApiSettings):
    """Sink, API, page and embedded ClickHouse port in one process: one chDB folder, one process."""


class EffectiveSetting(BaseModel):
    """One row of `tidemill config`."""

    name: str
    environment: str = Field(description="The variable that sets it.")
    value: str = Field(description="Text of the value in force; secrets are masked.")
    source: Literal["command line", "environment", "default"]
    meaning: str


MASK: Final = "********"
_CREDENTIALS: Final = re.compile(r"//[^/@]+@")


def load(cls: type[S], **given: Any) -> S:
    """Settings of a role from options (None: not given), environment and defaults.

    Raises SettingsError that names each wrong setting, the reason and how to set it.
    """
    options = {
        name: value
        for name, value in given.items()
        if value is not None and (name in EMPTY_OPTIONS or not is_blank(value))
    }
    try:
        return cls(**options)
    except ValidationError as error:
        raise SettingsError(_explain(error, options)) from None


def tell_environment(settings: CommonSettings) -> None:
    """Put Kafka and prefix of this process into its environment, whatever they came from.

    Clients that user code makes here, and in what it starts, then ask where this process listens.
    """
    for name in ("kafka", "topic_prefix"):
        value = getattr(settings, name)
        if value:
            os.environ[f"{ENV_PREFIX}{name.upper()}"] = value
        else:
            os.environ.pop(f"{ENV_PREFIX}{name.upper()}", None)


def _explain(error: ValidationError, options: dict[str, Any]) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if not name:
            lines.append(message)
        elif name in options:
            lines.append(f"option --{name.replace('_', '-')}: {message}")
        else:
            lines.append(f"{ENV_PREFIX}{name.upper()}: {message}; mend or unset the variable")
    return "; ".join(lines)


def effective(settings: CommonSettings, **given: Any) -> list[EffectiveSetting]:
    """Every setting with its value and source. `given` are the command line's options."""
    environment = {name.upper() for name, value in os.environ.items() if not is_blank(value)}
    rows = []
    for name, field in type(settings).model_fields.items():
        variable = f"{ENV_PREFIX}{name.upper()}"
        source: Literal["command line", "environment", "default"] = "default"
        value = given.get(name)
        if value is not None and (name in EMPTY_OPTIONS or not is_blank(value)):
            source = "command line"
        elif variable in environment:
            source = "environment"
        rows.append(
            EffectiveSetting(
                name=name,
                environment=variable,
                value=_masked(getattr(settings, name)),
                source=source,
                meaning=field.description or "",
            )
        )
    return rows


def _masked(value: object) -> str:
    if isinstance(value, SecretStr):
        return MASK
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    return _CREDENTIALS.sub(f"//{MASK}@", str(value))
