"""docs/REFERENCE.md: all names that others may rely on, in tables.

Owns the layout. Refuses to know a name: each comes from the module that owns it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from tidemill.agents import exit_codes, queries, settings
from tidemill.agents.api.main import build_api
from tidemill.agents.clickhouse.engine import Engine, EngineUnavailable
from tidemill.schemas.dead import HEADER_MEANINGS
from tidemill.schemas.rows import (
    JOB_EVENTS,
    JOB_MINUTES,
    JOBS,
    LOG_GAPS,
    REFUSED_REQUESTS,
    SINK_MARKS,
)
from tidemill.schemas.topics import DAY_MS, HOUR_MS, READY_PARTITIONS, Topics, TopicSpec
from tidemill.schemas.words import ErrorCode, Priority, Reason
from tidemill.streams.envelope import HEADER_MEANINGS as ENVELOPE_MEANINGS
from tidemill.streams.envelope import MESSAGE_BYTES_MAX
from tools.generate.asyncapi import CLOUDEVENT_HEADERS
from tools.generate.json_schemas import all_schemas
from tools.generate.words import ERROR_FIXES, REASON_MEANINGS

HEAD: Final = """# Reference

Written by `make docs` from the code; a test keeps it fresh. Names on this page stay; new ones are
added beside them.

Contents: [topics](#topics) · [records](#records) · [headers](#headers) · [clients](#clients) ·
[ClickHouse tables](#clickhouse-tables) · [panels](#panels) · [reasons](#reasons) ·
[error codes](#error-codes) · [HTTP API](#http-api) · [exit codes](#exit-codes) ·
[settings](#settings). States and events: [STATE_MACHINE.md](STATE_MACHINE.md). For machines:
[asyncapi.yaml](asyncapi.yaml), [schemas/](schemas/).
"""
RECORDS: Final = (
    "job-request", "command", "signal-command", "completed-job", "job-event", "retry-scheduled",
)
TABLES: Final = {
    "job_events": ("Every transition of every job, for ever. One row an event.", JOB_EVENTS),
    "jobs": ("One row a job: its latest state. A view, no FINAL needed.", JOBS),
    "refused_requests": (
        "One row a refused record: what jobs.dead tells, but for failed jobs.", REFUSED_REQUESTS
    ),
    "log_gaps": ("One row a gap: records that were gone before the sink read them.", LOG_GAPS),
    "sink_marks": ("The sink's own: which store its committed offsets tell of.", SINK_MARKS),
    "job_minutes": ("Roll-up by minute. Always `sum(events)`: rows may be several.", JOB_MINUTES),
}
ROLES: Final[dict[str, type[settings.CommonSettings]]] = {
    "ledger": settings.LedgerSettings,
    "worker": settings.WorkerSettings,
    "sink": settings.SinkSettings,
}
# Defaults that depend on the machine are told in words.
COMPUTED_DEFAULTS: Final = {"worker_id": "host-pid-0", "processes": "processors of the machine"}


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    names = list(head)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]


def _kept(spec: TopicSpec) -> str:
    if spec.config.get("cleanup.policy") == "compact":
        return "compacted"
    ms = int(spec.config["retention.ms"])
    return f"{ms // DAY_MS} d" if ms >= DAY_MS else f"{ms // HOUR_MS} h"


def _topics() -> list[str]:
    specs = [*Topics().fixed(), Topics().ready_spec("<queue>")]
    rows = [
        (
            f"`{spec.name}`", "yes" if spec.is_public else "", spec.partitions or "N", spec.key,
            spec.written_by, spec.read_by, _kept(spec), spec.meaning,
        )
        for spec in specs
    ]
    return [
        "## Topics", "",
        f"N is the setting `partitions`. Ready topics have {READY_PARTITIONS} partitions each. "
        "Topics that are not public may change from version to version. Read with "
        "`isolation.level=read_committed`. `TIDEMILL_TOPIC_PREFIX` goes in front of each name.", "",
        *_table(
            ("topic", "public", "partitions", "key", "written by", "read by", "kept", "meaning"),
            rows,
        ),
    ]


def _type_of(node: dict[str, Any]) -> str:
    if "$ref" in node:
        return str(node["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_type_of(choice) for choice in node["anyOf"]))
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if node.get("type") == "array":
        return f"array of {_type_of(node.get('items', {}))}"
    if node.get("format") == "date-time":
        return "RFC 3339 string"
    return str(node.get("type", "any JSON"))


def _records() -> list[str]:
    lines = ["## Records"]
    schemas = all_schemas()
    for name in RECORDS:
        schema = schemas[name]
        required = set(schema.get("required", ()))
        rows = [
            (f"`{field}`", _type_of(node), "yes" if field in required else "",
             node.get("description", ""))
            for field, node in schema["properties"].items()
        ]
        lines += ["", f"### {schema['title']}", "", schema["description"], ""]
        lines += _table(("field", "type", "always there", "meaning"), rows)
    priorities = ", ".join(f"`{priority}`" for priority in Priority)
    lines += ["", f"Priority: {priorities}. An error has `code`, `message` and `retryable`."]
    return lines


def _headers() -> list[str]:
    clouds = [(f"`{name}`", meaning) for name, meaning in CLOUDEVENT_HEADERS.items()]
    dead = [(f"`{name}`", meaning) for name, meaning in HEADER_MEANINGS.items()]
    ours = [(f"`{name}`", meaning) for name, meaning in ENVELOPE_MEANINGS.items()]
    return [
        "## Headers", "",
        "CloudEvents 1.0. On `jobs.requested` all are optional (plain JSON needs none); where one "
        "`ce_*` header is present, `ce_specversion`, `ce_id`, `ce_source` and `ce_type` must be. "
        "On `jobs.completed` they are always there.", "",
        *_table(("header", "meaning"), clouds), "",
        "Dead letters on `jobs.dead` keep key, value and headers of the record that was refused "
        "and carry, as UTF-8 strings, what follows. Where user and job could be read, the job ends "
        "as `failed` too. A job that failed for good after it was accepted has one as well, of "
        "stage `attempt`: key is its user_id, value the request as the ledger keeps it, defaults "
        "filled in; topic, partition and offset are of the record that led to its end (offset -1: "
        "none did, it was a timer).", "",
        *_table(("header", "meaning"), dead), "",
        "Records on `jobs.internal` have an envelope of headers, behind those of the record. Only "
        "ledgers write there. The value of a message is a JSON object of at most "
        f"{MESSAGE_BYTES_MAX} bytes. A kind, a version or a policy that a ledger does not know "
        "ends it with exit code 79; what no ledger wrote becomes a dead letter.", "",
        *_table(("header", "meaning"), ours),
    ]


# Clients and what each reads without an extra library, as their own documents say.
CLIENTS: Final = (
    ("confluent-kafka for Python, Go, .NET, JavaScript", "all", "Tested in Python."),
    ("Java's kafka-clients, Spring, Kafka Connect, Kafka Streams", "all", "Tested."),
    ("kafkajs", "none, gzip", "Tested with its defaults."),
    ("aiokafka, kafka-python", "none, gzip", "The others with an extra (`aiokafka[all]`)."),
    ("franz-go, sarama, kafka-go (Go)", "all", ""),
    ("rdkafka (Rust)", "none, gzip, lz4, snappy", "zstd with the feature of that name."),
)


def _clients() -> list[str]:
    return [
        "## Clients", "",
        "The ledger writes the public topics in gzip, which every client reads; "
        "`TIDEMILL_PUBLIC_COMPRESSION` chooses zstd (half as large) or none. Other topics are in "
        "zstd. `jobs.requested` and `jobs.commands` keep the compression of whoever wrote them: "
        "the clients of this package use none by default (`Client(compression=...)`), and the "
        "ledger reads all.",
        "",
        *_table(("client", "compressions that it reads by default", "note"), CLIENTS), "",
    ]


def _clickhouse() -> list[str]:
    lines = ["## ClickHouse tables", "", "Database `default`."]
    for name, (meaning, columns) in TABLES.items():
        rows = [(f"`{column}`", kind, text) for column, (kind, text) in columns.items()]
        lines += ["", f"### {name}", "", meaning, "", *_table(("column", "type", "meaning"), rows)]
    return lines


def _panels() -> list[str]:
    found = [queries.load(name) for name in queries.names()]
    rows = [(f"`{q.name}`", q.meaning, q.unit, ", ".join(q.params)) for q in found]
    return [
        "## Panels", "",
        "SQL files of `agents/queries`, shared by page, HTTP API and Grafana.", "",
        *_table(("panel", "meaning", "unit", "parameters"), rows),
    ]


def _words() -> list[str]:
    reasons = [(f"`{reason}`", REASON_MEANINGS[reason]) for reason in Reason]
    errors = [(f"`{code}`", *ERROR_FIXES[code]) for code in ErrorCode]
    return [
        "## Reasons", "",
        "In the column `reason`. A handler's own `Skip(reason=...)` is kept as it is.", "",
        *_table(("reason", "meaning"), reasons), "",
        "## Error codes", "",
        "A handler may add its own with `NonRetryable(code=...)`.", "",
        *_table(("code", "what is wrong", "what to do"), errors),
    ]


def _no_engine() -> Engine:
    raise EngineUnavailable("none is needed to describe the API")


def _api() -> list[str]:
    app = build_api(_no_engine, settings.ApiSettings.model_construct())
    rows = [
        (f"`{method.upper()} {path}`", operation["summary"])
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    ]
    return [
        "## HTTP API", "",
        "`/openapi.json` describes it in full. Errors are RFC 9457 problem details "
        "(`application/problem+json`) with `field` where one is at fault. With `TIDEMILL_TOKEN` "
        "set, send `Authorization: Bearer <token>`. `POST /api/jobs` takes a JobRequest; header "
        "`Idempotency-Key` stands for `job_id`.", "",
        *_table(("route", "what it answers"), [*rows, ("`GET /metrics`", "Prometheus metrics")]),
    ]


def _exit_codes() -> list[str]:
    rows = [(code, meaning) for code, meaning in exit_codes.MEANINGS.items()]
    return ["## Exit codes", "", *_table(("code", "meaning"), rows)]


def _default(model: type[BaseModel], name: str) -> str:
    if name in COMPUTED_DEFAULTS:
        return COMPUTED_DEFAULTS[name]
    value = model.model_fields[name].default
    return "" if value is None or value is PydanticUndefined or value == "" else f"`{value}`"


def _setting_rows(model: type[settings.CommonSettings], without: set[str]) -> list[tuple[str, ...]]:
    return [
        (f"`{settings.ENV_PREFIX}{name.upper()}`", _default(model, name), field.description or "")
        for name, field in model.model_fields.items()
        if name not in without
    ]


def _settings() -> list[str]:
    head = ("variable", "default", "meaning")
    common = set(settings.CommonSettings.model_fields)
    lines = [
        "## Settings", "",
        "Options of the command line win over variables, variables over defaults. "
        "`tidemill config` prints the values in force and where each is from.", "",
        "Every role:", "", *_table(head, _setting_rows(settings.CommonSettings, set())),
    ]
    for role, model in ROLES.items():
        lines += ["", f"The {role}:", "", *_table(head, _setting_rows(model, common))]
    return lines


def render() -> str:
    """The Markdown text."""
    sections = (
        _topics(), _records(), _headers(), _clients(), _clickhouse(), _panels(), _words(),
        _api(), _exit_codes(), _settings(),
    )
    body = "\n\n".join("\n".join(section) for section in sections)
    return f"{HEAD}\n{body}\n"
