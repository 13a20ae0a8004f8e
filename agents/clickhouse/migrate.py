"""Numbered schema changes of ClickHouse: applied once each, in order, and never changed after.

Owns the files' names and checksums, and the table `schema_migrations`. It refuses to know what the
statements mean. The files are package data, `agents/clickhouse/migrations/NNNN_name.sql`, so that
an installed wheel carries them.

ClickHouse has no transactional DDL. A file that fails halfway is not recorded and runs again from
its first statement, so each statement must be repeatable (IF NOT EXISTS, OR REPLACE); then two
processes that migrate at once do no harm either.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

from tidemill.agents.clickhouse.engine import Engine, EngineError

MIGRATIONS_TABLE = "schema_migrations"
_FILE_NAME = re.compile(r"^(?P<number>\d{4})_(?P<name>[a-z0-9_]+)\.sql$")
_CREATE_TABLE = f"""
CREATE TABLE IF NOT EXISTS {MIGRATIONS_TABLE}
(
    number UInt32,
    name String,
    checksum FixedString(64),
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree ORDER BY number
"""
# Comments and quoted text, inside which a semicolon ends nothing; then the semicolon itself.
_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/)|'(?:[^'\\]|\\.|'')*'|`(?:[^`\\]|\\.)*`|"(?:[^"\\]|\\.)*"|(?P<end>;)""",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its number, its name without number and suffix, its text and SHA-256 in hex."""

    number: int
    name: str
    sql: str
    checksum: str

    @property
    def label(self) -> str:
        return f"{self.number:04}_{self.name}"


class MigrationError(EngineError):
    """The files do not fit what was applied before; the text says which file, and the way out."""


def migrate(engine: Engine, folder: Path | None = None) -> list[str]:
    """Applies what is missing and returns the labels of what it applied, oldest first."""
    wanted = load_migrations(folder)
    engine.command(_CREATE_TABLE)
    applied = _applied(engine)
    _check(wanted, applied)
    missing = [migration for migration in wanted if migration.number not in applied]
    for migration in missing:
        _apply(engine, migration)
    return [migration.label for migration in missing]


def pending_migrations(engine: Engine, folder: Path | None = None) -> list[str]:
    """Labels of what `migrate` would apply; raises MigrationError as it would. Changes nothing."""
    wanted = load_migrations(folder)
    found = engine.query(f"EXISTS TABLE {MIGRATIONS_TABLE}")
    applied = _applied(engine) if found and next(iter(found[0].values())) else {}
    _check(wanted, applied)
    return [migration.label for migration in wanted if migration.number not in applied]


def load_migrations(folder: Path | None = None) -> list[Migration]:
    """The files by number; those of the package when no folder is given."""
    source = folder if folder is not None else files("tidemill.agents.clickhouse") / "migrations"
    found = [
        _loaded(item.name, item.read_text("utf-8"))
        for item in source.iterdir()
        if item.name.endswith(".sql")
    ]
    found.sort(key=lambda migration: migration.number)
    for before, after in pairwise(found):
        if before.number == after.number:
            raise MigrationError(f"migrations {before.label} and {after.label}: the same number")
    return found


def statements_of(sql: str) -> list[str]:
    """The statements of a file, without comments; semicolons in quotes and comments end nothing."""
    statements, parts, at = list[str](), list[str](), 0
    for token in _TOKEN.finditer(sql):
        if token["comment"] is None and token["end"] is None:
            continue
        parts.append(sql[at : token.start()])
        at = token.end()
        if token["end"]:
            statements.append("".join(parts))
            parts = []
    parts.append(sql[at:])
    statements.append("".join(parts))
    return [statement.strip() for statement in statements if statement.strip()]


def _loaded(file_name: str, sql: str) -> Migration:
    parts = _FILE_NAME.match(file_name)
    if not parts:
        raise MigrationError(f"migration {file_name}: name it NNNN_words_in_lower_case.sql")
    checksum = hashlib.sha256(sql.replace("\r\n", "\n").encode()).hexdigest()
    return Migration(int(parts["number"]), parts["name"], sql, checksum)


def _applied(engine: Engine) -> dict[int, tuple[str, str]]:
    rows = engine.query(
        f"SELECT number, name, checksum FROM {MIGRATIONS_TABLE} FINAL ORDER BY number"
    )
    return {int(row["number"]): (row["name"], row["checksum"]) for row in rows}


def _check(wanted: list[Migration], applied: dict[int, tuple[str, str]]) -> None:
    known = {migration.number: migration for migration in wanted}
    for number, (name, checksum) in applied.items():
        migration = known.get(number)
        if migration is None:
            raise MigrationError(
                f"migration {number:04}_{name} was applied to this ClickHouse and is not in this "
                "version of tidemill: it is older than the schema; upgrade tidemill"
            )
        if migration.checksum != checksum:
            raise MigrationError(
                f"migration {migration.label} was changed after it had been applied (SHA-256 "
                f"{checksum[:12]}… then, {migration.checksum[:12]}… now): restore the file and put "
                "the change into a new one"
            )
    newest = max(applied, default=0)
    for migration in wanted:
        if migration.number not in applied and migration.number < newest:
            raise MigrationError(
                f"migration {migration.label} is older than {newest:04}, which is applied "
                "already: give it the next free number"
            )


def _apply(engine: Engine, migration: Migration) -> None:
    for position, statement in enumerate(statements_of(migration.sql), start=1):
        try:
            engine.command(statement)
        except EngineError as error:
            raise MigrationError(
                f"migration {migration.label}, statement {position}: {error.message}",
                code=error.code,
                name=error.name,
            ) from error
    engine.command(
        f"INSERT INTO {MIGRATIONS_TABLE} (number, name, checksum)"
        " SELECT {number:UInt32}, {name:String}, {checksum:String}",
        {
            "number": migration.number,
            "name": migration.name,
            "checksum": migration.checksum,
        },
    )
