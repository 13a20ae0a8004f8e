"""The same SQL for Grafana: parameters become macros of its ClickHouse data source.

Owns the translation and its inverse for tests. Refuses to know dashboards and panels.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from tidemill.agents.queries import DEFAULT_LIMIT, Query, Window

MACROS: Final = {
    "since": "$__fromTime_ms",
    "until": "$__toTime_ms",
    "step_seconds": "$__interval_s",
    "limit": str(DEFAULT_LIMIT),
}
"""Parameter -> what Grafana's ClickHouse data source puts there.

The two instants expand to `fromUnixTimestamp64Milli(…)`, the interval to whole seconds.
"""

_PARAM: Final = re.compile(r"\{([a-z_]+):[^{}]+\}")


def to_grafana(query: Query) -> str:
    """The SQL with macros; ValueError for a query whose parameters Grafana cannot fill."""

    def macro(found: re.Match[str]) -> str:
        try:
            return MACROS[found[1]]
        except KeyError:
            raise ValueError(
                f"query {query.name!r}: Grafana has no macro for its parameter {found[1]!r}"
            ) from None

    return _PARAM.sub(macro, query.sql)


def expand(sql: str, window: Window) -> str:
    """What Grafana would send for this window: the macros filled in."""
    return (
        sql.replace("$__fromTime_ms", _instant(window.since))
        .replace("$__toTime_ms", _instant(window.until))
        .replace("$__interval_s", str(window.step_seconds))
    )


def _instant(moment: datetime) -> str:
    return f"fromUnixTimestamp64Milli({int(moment.astimezone(UTC).timestamp() * 1000)})"
