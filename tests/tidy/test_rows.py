"""The tables that the migrations make have the columns that `tidemill.schemas.rows` promises, and
no others.

Owns the comparison, column by column: name, type, order. The meanings are in
`tidemill.schemas.rows` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from tidemill.agents.clickhouse.engine import Engine, open_engine
from tidemill.agents.clickhouse.migrate import load_migrations, migrate, statements_of
from tidemill.agents.sink.records import COLUMNS
from tidemill.schemas.events import JobEvent
from tidemill.schemas.rows import (
    JOB_EVENTS,
    JOB_MINUTES,
    JOBS,
    LOG_GAPS,
    REFUSED_REQUESTS,
    SINK_MARKS,
)

TABLES: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "job_events": JOB_EVENTS,
    "jobs": JOBS,
    "jobs_latest": JOBS,
    "job_minutes": JOB_MINUTES,
    "refused_requests": REFUSED_REQUESTS,
    "log_gaps": LOG_GAPS,
    "sink_marks": SINK_MARKS,
}
# Columns that come in with an event and are taken apart; they are not stored.
EPHEMERAL = {"job_events": {"schema_version", "error", "cause"}}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    opened = open_engine(f"chdb://{tmp_path_factory.mktemp('rows') / 'clickhouse'}")
    migrate(opened)
    yield opened
    opened.close()


@pytest.mark.parametrize("table", TABLES)
def test_columns_are_those_of_the_contract(engine: Engine, table: str) -> None:
    rows = engine.query(
        "SELECT name, type, default_kind FROM system.columns"
        " WHERE database = currentDatabase() AND table = {table:String} ORDER BY position",
        {"table": table},
    )
    stored = {row["name"]: row["type"] for row in rows if row["default_kind"] != "EPHEMERAL"}
    wanted = {name: type_name for name, (type_name, _) in TABLES[table].items()}
    assert list(stored.items()) == list(wanted.items())
    passing = {row["name"] for row in rows if row["default_kind"] == "EPHEMERAL"}
    assert passing == EPHEMERAL.get(table, set())


def test_an_insert_names_the_fields_of_an_event(engine: Engine) -> None:
    assert set(COLUMNS) == set(JobEvent.model_fields) | {"kafka_partition", "kafka_offset"}


def test_statements_are_repeatable(engine: Engine) -> None:
    """A migration that was cut short runs again from its first statement."""
    for migration in load_migrations():
        for statement in statements_of(migration.sql):
            engine.command(statement)


def test_every_table_remembers_tokens(engine: Engine) -> None:
    """Without a window a batch that is made again would be there twice."""
    rows = engine.query(
        "SELECT name, engine_full FROM system.tables WHERE database = currentDatabase()"
        " AND engine LIKE '%MergeTree' AND name != 'schema_migrations' ORDER BY name"
    )
    assert [row["name"] for row in rows] == [
        "job_events", "job_minutes", "jobs_latest", "log_gaps", "refused_requests",
        "sink_marks",
    ]
    for row in rows:
        assert "non_replicated_deduplication_window = 20000" in row["engine_full"], row["name"]
