"""Which settings hold for a query on the read-only port: ours first, then what a client may choose.

Owns the limits and the allow-list. A client's own limits count when they are tighter; settings that
shape the answer are passed on; every other one that ClickHouse knows is ignored in the address,
where stock clients send many by habit, and refused in a SETTINGS clause, where somebody meant it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from tidemill.agents.clickhouse.engine import Engine, EngineError
from tidemill.agents.clickhouse.guard import Refused

QUERY_SECONDS_MAX = 30
"""A dashboard gives up by then; the same process also feeds ClickHouse."""
RESULT_ROWS_MAX = 1_000_000
RESULT_BYTES_MAX = 268_435_456
"""Answers are built in memory: 256 MiB times the queries at once must fit a laptop."""
QUERY_MEMORY_BYTES_MAX = 1_000_000_000
TEMPORARY_BYTES_MAX = 2_000_000_000
"""What a large sort or GROUP BY may spill into the engine's own folder."""
QUERY_THREADS_MAX = 2
QUERIES_MAX = 4
"""Queries that run at once; more would only share the same two cores."""
WAITING_MAX = 64
"""Requests that may wait for their turn: a dashboard of 20 panels, three times over."""

# Arguments of the HTTP interface that are no settings.
TRANSPORT_ARGUMENTS = frozenset(
    {
        "buffer_size",
        "client_protocol_version",
        "compress",
        "database",
        "decompress",
        "default_format",
        "password",
        "query",
        "query_id",
        "quota_key",
        "role",
        "session_check",
        "session_id",
        "session_timeout",
        "stacktrace",
        "user",
        "wait_end_of_query",
    }
)
# Limits of ours that a client may tighten.
_TIGHTENED = (
    "max_execution_time",
    "max_result_rows",
    "max_result_bytes",
    "max_memory_usage",
    "max_threads",
)
# What shapes an answer. `output_format_schema` names a file to write, hence the list of families.
_SHAPING = re.compile(
    r"^(output_format_(json|csv|tsv|parquet|arrow|native|pretty|binary|orc|avro_codec|avro_sync|decimal|"
    r"write_statistics|always|values|trim|float|msgpack|bson|markdown|sql_insert|enable_streaming)\w*"
    r"|date_time_output_format|extremes|final|limit|offset|join_use_nulls|session_timezone"
    r"|aggregate_functions_null_for_empty|prefer_column_name_to_alias|union_default_mode"
    r"|transform_null_in|max_rows_to_read|max_bytes_to_read|max_block_size|group_by_use_nulls"
    r"|joined_subquery_requires_alias|optimize_\w+|use_skip_indexes|short_circuit_function_evaluation)$"
)


@dataclass(frozen=True, slots=True)
class PortLimits:
    """Bounds of one query, and of queries at once."""

    query_seconds_max: int = QUERY_SECONDS_MAX
    result_rows_max: int = RESULT_ROWS_MAX
    result_bytes_max: int = RESULT_BYTES_MAX
    memory_bytes_max: int = QUERY_MEMORY_BYTES_MAX
    threads_max: int = QUERY_THREADS_MAX
    queries_max: int = QUERIES_MAX
    waiting_max: int = WAITING_MAX


class SettingsPolicy:
    """Turns what a client asked for into what will hold."""

    def __init__(self, engine: Engine, limits: PortLimits):
        self._engine = engine
        self._forced: dict[str, object] = {
            "max_execution_time": limits.query_seconds_max,
            "max_result_rows": limits.result_rows_max,
            "max_result_bytes": limits.result_bytes_max,
            "max_memory_usage": limits.memory_bytes_max,
            "max_threads": limits.threads_max,
            "max_temporary_data_on_disk_size_for_query": TEMPORARY_BYTES_MAX,
            "timeout_overflow_mode": "throw",
            "result_overflow_mode": "throw",
            "allow_ddl": 0,
            "allow_introspection_functions": 0,
            "readonly": 1,
        }

    def effective(
        self, from_address: dict[str, str], from_clause: dict[str, object]
    ) -> dict[str, object]:
        """The settings to run with; raises for an unknown one and for a clause too far."""
        settings: dict[str, object] = {}
        for name, value in from_address.items():
            if name not in TRANSPORT_ARGUMENTS and self._is_known(name) and self._is_open(name):
                settings[name] = self._tightened(name, value)
        for name, wanted in from_clause.items():
            if not self._is_known(name) or not self._is_open(name):
                raise Refused(
                    f"Cannot modify '{name}' setting in readonly mode", code=164, name="READONLY"
                )
            settings[name] = self._tightened(name, wanted)
        return {**self._forced, **settings, "readonly": 1}

    def checked_format(self, fmt: str) -> str:
        """The format, when the engine writes it; its driver takes some names for its own."""
        if fmt not in self._formats:
            raise EngineError(f"Unknown format {fmt}", code=73, name="UNKNOWN_FORMAT")
        return fmt

    def _is_open(self, name: str) -> bool:
        return name in _TIGHTENED or bool(_SHAPING.match(name))

    def _is_known(self, name: str) -> bool:
        if name in self._known:
            return True
        raise EngineError(
            f"Setting {name} is neither a builtin setting nor started with the prefix "
            "'SQL_' registered for user-defined settings",
            code=115,
            name="UNKNOWN_SETTING",
        )

    def _tightened(self, name: str, value: object) -> object:
        if not isinstance(value, str | int | float):
            raise EngineError(f"Setting {name}: not a plain value", code=36, name="BAD_ARGUMENTS")
        if name not in _TIGHTENED:
            return value
        try:
            asked = int(float(value))
        except (ValueError, OverflowError) as error:
            raise EngineError(
                f"Setting {name}: {value!r} is not a number", code=72, name="CANNOT_PARSE_NUMBER"
            ) from error
        limit = int(str(self._forced[name]))
        return min(asked, limit) if asked > 0 else limit

    @cached_property
    def _known(self) -> frozenset[str]:
        rows = self._engine.query("SELECT name FROM system.settings")
        return frozenset(str(row["name"]) for row in rows)

    @cached_property
    def _formats(self) -> frozenset[str]:
        rows = self._engine.query("SELECT name FROM system.formats WHERE is_output")
        return frozenset(str(row["name"]) for row in rows)
