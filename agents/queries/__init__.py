"""The SQL behind every number that is shown: one file a panel, shared by page, CLI and Grafana.

Owns the files, their headers, the typing of their parameters and the window of time that they look
at. Refuses to know who shows the answer, and how an engine is reached.

Each file is plain ClickHouse SQL with `{name:Type}` parameters and begins with a header:

    -- title: Throughput
    -- meaning: One sentence for a person.
    -- unit: jobs/s
    -- params: since, until, step_seconds

A line `-- include: NAME` in it stands for what is in NAME.inc, which several files share.

`tidemill.agents.queries.grafana` turns a file's parameters into Grafana's macros.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Any, Final, Protocol

DEFAULT_MINUTES: Final = 15  # minutes of a window that nobody chose: fits a screen, and an incident
MINUTES_MAX: Final = 7 * 24 * 60  # minutes, a week; longer looks belong to `tidemill sql`
DEFAULT_LIMIT: Final = 20  # rows of a panel
LIMIT_MAX: Final = 1_000  # rows of one answer
POINTS_MAX: Final = 180  # points of a chart; more than a screen can tell apart only costs time
STEPS_SECONDS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600)
QUERY_SECONDS_MAX: Final = 10  # seconds after which ClickHouse gives up a query of a panel

SETTINGS: Final[dict[str, object]] = {
    "date_time_output_format": "iso",
    "output_format_json_quote_64bit_integers": 0,
    "output_format_json_quote_denormals": 0,  # a quantile of nothing is NaN, and becomes null
    "max_execution_time": QUERY_SECONDS_MAX,
}
"""Settings that every panel's query runs with, so that JSON looks the same from both engines."""

_PARAM: Final = re.compile(r"\{(?P<name>[a-z_]+):(?P<type>[^{}]+)\}")
_INCLUDE: Final = re.compile(r"^ *-- include: ([a-z_]+)\n", re.MULTILINE)
_HEADER: Final = re.compile(r"^-- (?P<key>[a-z]+):[ ]?(?P<value>.*)$")


class SupportsQuery(Protocol):
    """What of `tidemill.agents.clickhouse.engine.Engine` is needed here."""

    def query(
        self,
        sql: str,
        params: Mapping[str, object] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> list[dict[str, Any]]:
        """Rows of a SELECT."""


@dataclass(frozen=True, slots=True)
class Query:
    """One file: its SQL without the header, and what the header says."""

    name: str
    title: str
    meaning: str
    unit: str
    params: Mapping[str, str]
    sql: str


@dataclass(frozen=True, slots=True)
class Window:
    """The time that a panel looks at, and the step of its points."""

    since: datetime
    until: datetime
    step_seconds: int

    @classmethod
    def last(cls, minutes: int, now: datetime, points_max: int = POINTS_MAX) -> Window:
        """The last `minutes`, with steps that keep a chart at `points_max` points or below.

        `until` is the end of the current second: what has just happened is inside.
        """
        if not 1 <= minutes <= MINUTES_MAX:
            raise ValueError(f"minutes: {minutes} is not within 1 and {MINUTES_MAX}")
        step = next(s for s in STEPS_SECONDS if minutes * 60 / s <= points_max or s == 3_600)
        until = now.astimezone(UTC).replace(microsecond=0) + timedelta(seconds=1)
        return cls(until - timedelta(minutes=minutes), until, step)

    def params(self) -> dict[str, object]:
        """As the files name them."""
        return {"since": self.since, "until": self.until, "step_seconds": self.step_seconds}


class UnknownQuery(LookupError):
    """No file has this name."""


def names() -> tuple[str, ...]:
    """All panels, sorted."""
    entries = (entry.name for entry in files(__package__).iterdir())
    return tuple(sorted(name[:-4] for name in entries if name.endswith(".sql")))


@cache
def load(name: str) -> Query:
    """The query of a panel; UnknownQuery names the ones that there are."""
    if name not in names():
        raise UnknownQuery(f"no query {name!r}; there are: {', '.join(names())}")
    text = _INCLUDE.sub(lambda found: _text(f"{found[1]}.inc"), _text(f"{name}.sql"))
    return parse(name, text)


def _text(file_name: str) -> str:
    return files(__package__).joinpath(file_name).read_text(encoding="utf-8")


def parse(name: str, text: str) -> Query:
    """A file's text as a Query; ValueError when the header and the SQL disagree."""
    header: dict[str, str] = {}
    lines = text.splitlines()
    while lines and (found := _HEADER.match(lines[0])):
        header[found["key"]] = found["value"].strip()
        lines.pop(0)
    if missing := {"title", "meaning", "unit", "params"} - header.keys():
        raise ValueError(f"{name}.sql: the header lacks {', '.join(sorted(missing))}")
    sql = "\n".join(lines).strip()
    used = {found["name"]: found["type"] for found in _PARAM.finditer(sql)}
    told = [word.strip() for word in header["params"].split(",") if word.strip()]
    if set(told) != set(used):
        raise ValueError(f"{name}.sql: the header names {told}, the SQL uses {sorted(used)}")
    return Query(
        name, header["title"], header["meaning"], header["unit"], {n: used[n] for n in told}, sql
    )


def run(
    engine: SupportsQuery, name: str, window: Window | None = None, **params: object
) -> list[dict[str, Any]]:
    """Rows of a panel. Parameters that the file does not know are an error, missing ones too."""
    query = load(name)
    given: dict[str, object] = {"limit": DEFAULT_LIMIT} if "limit" in query.params else {}
    if window is not None:
        given |= {key: value for key, value in window.params().items() if key in query.params}
    given |= params
    if set(given) != set(query.params):
        raise ValueError(
            f"query {name!r} takes {', '.join(query.params) or 'nothing'}, not {sorted(given)}"
        )
    return engine.query(query.sql, given, SETTINGS)
