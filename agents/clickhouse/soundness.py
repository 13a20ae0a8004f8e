"""Whether a store has what it had: tables that are gone, parts that were left out, empty tables.

Owns the questions and their words. Refuses to mend: what is lost here is in the log, and a store
that is new gets all of it again (`tidemill.agents.sink.store`).

ClickHouse starts with whatever it can read. A part whose files are damaged is put aside, a table
whose folder is gone is empty, and nobody is told.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tidemill.agents.clickhouse.engine import CHDB_SCHEME, Engine, EngineError
from tidemill.agents.clickhouse.migrate import load_migrations, statements_of

Query = Callable[[str], list[dict[str, Any]]]

_MADE: Final = re.compile(
    r"^(?:--[^\n]*\n|\s)*CREATE (?:OR REPLACE )?(?:TABLE|MATERIALIZED VIEW|VIEW)"
    r"(?: IF NOT EXISTS)? (\w+)"
)
_LEFT_OUT: Final = (
    "SELECT table, count() AS parts FROM system.detached_parts"
    " WHERE database = currentDatabase() AND startsWith(reason, 'broken')"
    " GROUP BY table ORDER BY table"
)
# `jobs_latest` and `job_minutes` are filled by the inserts into `job_events`.
_COUNTS: Final = (
    "SELECT (SELECT count() FROM job_events) AS events,"
    " (SELECT count() FROM job_minutes) AS minutes, (SELECT count() FROM jobs_latest) AS jobs"
)
_HAS_MOVES: Final = "SELECT 1 FROM job_events WHERE sequence > 0 LIMIT 1"


class DamagedStore(EngineError):
    """A store that cannot be used as it is, with the way out; starting again changes nothing."""

    def __str__(self) -> str:
        return self.message


def way_out(dsn: str) -> str:
    """What is safe to do about a store that has lost something."""
    if dsn.startswith(CHDB_SCHEME):
        folder = dsn.removeprefix(CHDB_SCHEME)
        return (
            f"no job needs it: stop what uses it, move {folder} away and start again; the rows "
            "come back from the log as far as it reaches back (or put back a copy of the folder)"
        )
    return (
        "no job needs it: stop the sinks, then put back a backup of the database, or drop it and "
        "make it anew; the rows come back from the log as far as it reaches back"
    )


def unreadable(folder: Path) -> str | None:
    """The first thing in a folder that this user may not read or write; None without one."""
    for where, folders, files in os.walk(folder):
        for path in (Path(where), *(Path(where, name) for name in (*folders, *files))):
            if not path.is_symlink() and not os.access(path, os.R_OK | os.W_OK):
                return str(path)
    return None


def refuse_missing_tables(engine: Engine) -> None:
    """Raises DamagedStore when a table is gone that a migration made; asked after `migrate`."""
    wanted = {
        found[1]
        for migration in load_migrations()
        for statement in statements_of(migration.sql)
        if (found := _MADE.match(statement)) is not None
    }
    rows = engine.query("SELECT name FROM system.tables WHERE database = currentDatabase()")
    missing = sorted(wanted - {row["name"] for row in rows})
    if missing:
        raise DamagedStore(
            f"{engine.dsn}: its tables {', '.join(missing)} are gone; {way_out(engine.dsn)}"
        )


def losses(query: Query) -> list[str]:
    """What a store seems to have lost, each in words; none when all is there."""
    found = [
        f"{row['parts']} damaged parts of {row['table']} are left out" for row in query(_LEFT_OUT)
    ]
    counts = {name: int(count) for name, count in query(_COUNTS)[0].items()}
    if not counts["events"] and (counts["minutes"] or counts["jobs"]):
        found.append("job_events is empty, and what was made of it is not")
    elif counts["events"] and not counts["minutes"]:
        found.append("job_minutes is empty, and job_events is not")
    if counts["events"] and not counts["jobs"] and query(_HAS_MOVES):
        found.append("jobs_latest is empty, and job_events is not")
    return found
