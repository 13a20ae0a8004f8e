"""The points of the charts, column by column as the drawing code wants them.

Owns which panel becomes which chart and in which order its lines come. Refuses to know colours.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from tidemill.agents import queries
from tidemill.agents.api.reader import Reader, Rows
from tidemill.agents.api.view import moment_of

TYPES_MAX: Final = 5  # lines of the error chart; more cannot be told apart
WIDE: Final = {
    "throughput": ("succeeded", "failed", "skipped", "cancelled", "expired"),
    "requested_rate": ("requested", "ended"),
    "wait_series": ("p50", "p95", "p99"),
    "run_series": ("p50", "p95", "p99"),
}
"""Panel -> its columns, each a line."""
POINTS: Final = {"wait_series": 60, "run_series": 60, "error_rate_series": 60}
"""Panel -> points of its chart, at most: a percentile or a share of three jobs says nothing."""
OPTIONAL: Final = frozenset({"skipped", "cancelled", "expired"})
"""Lines that are left out while they are zero throughout."""

Chart = dict[str, Any]


async def chart_data(reader: Reader, minutes: int) -> dict[str, Chart]:
    """{chart: {x: epoch seconds, series: [{label, values}]}} over the last `minutes`."""

    async def rows(name: str) -> Rows:
        return await reader.rows(name, minutes, points_max=POINTS.get(name, queries.POINTS_MAX))

    errors, *wide = await asyncio.gather(
        rows("error_rate_series"), *(rows(name) for name in WIDE)
    )
    charts = {name: _wide(rows, WIDE[name]) for name, rows in zip(WIDE, wide, strict=True)}
    charts["error_rate_series"] = _by_type(errors, charts["wait_series"]["x"])
    return charts


def _seconds(text: str) -> int:
    return int(moment_of(text).timestamp())


def _whole(rows: Rows) -> Rows:
    """Without the step that has not ended yet: it would look like a drop to nothing."""
    if len(rows) < 2:
        return rows
    last = _seconds(rows[-1]["at"])
    step = last - _seconds(rows[-2]["at"])
    return rows[:-1] if last + step > time.time() else rows


def _wide(rows: Rows, columns: tuple[str, ...]) -> Chart:
    rows = _whole(rows)
    series = [{"label": name, "values": [row[name] for row in rows]} for name in columns]
    return {
        "x": [_seconds(row["at"]) for row in rows],
        "series": [
            line for line in series if line["label"] not in OPTIONAL or any(line["values"])
        ],
    }


def _by_type(rows: Rows, times: list[int]) -> Chart:
    """One line a type over the given times; null where no attempt of it ended."""
    by_type: dict[str, dict[int, float]] = {}
    for row in rows:
        by_type.setdefault(row["type"], {})[_seconds(row["at"])] = row["error_percent"]
    # The types with the most errors are what one looks for.
    worst = sorted(by_type, key=lambda name: (-sum(by_type[name].values()), name))[:TYPES_MAX]
    series = [
        {"label": name, "values": [by_type[name].get(at) for at in times]} for name in sorted(worst)
    ]
    return {"x": times, "series": series}
