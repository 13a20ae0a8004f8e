"""Grafana's dashboards: deploy/grafana/dashboards/*.json, over the same SQL as the page.

Owns which panel stands where and how it is drawn. Refuses to know SQL: it comes from
`tidemill.agents.queries`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from tidemill.agents.queries import Query, load
from tidemill.agents.queries.grafana import to_grafana

FOLDER: Final = "deploy/grafana/dashboards"
SOURCE: Final = {"type": "grafana-clickhouse-datasource", "uid": "tidemill-clickhouse"}
SCHEMA_VERSION: Final = 39  # of Grafana's dashboard JSON; newer Grafanas migrate it by themselves
COLUMNS: Final = 24  # of Grafana's grid
FORMAT_SERIES: Final = 0  # of the data source: a time column and numbers
FORMAT_TABLE: Final = 1
UNITS: Final = {"jobs/s": "ops", "ms": "ms", "%": "percent"}
STATUS_COLORS: Final = {
    "succeeded": "green", "failed": "red", "skipped": "blue", "cancelled": "#808080",
    "expired": "purple",
}


@dataclass(frozen=True, slots=True)
class Place:
    """One panel: its query, its kind, its size, and for a stat the column that it shows."""

    query: str
    kind: str  # timeseries, table or stat
    width: int
    height: int
    field: str = ""
    title: str = ""
    unit: str = ""


DASHBOARDS: Final[dict[str, tuple[str, tuple[Place, ...]]]] = {
    "throughput": (
        "Tidemill: throughput",
        (
            Place("totals", "stat", 8, 4, "ended_per_second", "Throughput", "jobs/s"),
            Place("live_now", "stat", 4, 4, "waiting", "Waiting now"),
            Place("live_now", "stat", 4, 4, "in_flight", "In flight now"),
            Place("live_now", "stat", 4, 4, "awaiting", "Awaiting now"),
            Place("live_now", "stat", 4, 4, "dead_letters", "Dead letters"),
            Place("throughput", "timeseries", 24, 9),
            Place("requested_rate", "timeseries", 12, 8),
            Place("states_now", "table", 12, 8),
            Place("wait_series", "timeseries", 12, 8),
            Place("run_series", "timeseries", 12, 8),
            Place("queues", "table", 12, 8),
            Place("latency_by_type", "table", 12, 8),
            Place("nobody_runs", "table", 12, 8),
            Place("hand_backs", "table", 12, 8),
        ),
    ),
    "errors": (
        "Tidemill: error rate",
        (
            Place("totals", "stat", 8, 4, "error_percent", "Error rate of attempts", "%"),
            Place("totals", "stat", 8, 4, "failed", "Jobs failed"),
            Place("totals", "stat", 8, 4, "retries", "Retries"),
            Place("error_rate_series", "timeseries", 24, 9),
            Place("error_rate_by_type", "table", 12, 8),
            Place("error_codes", "table", 12, 8),
            Place("last_failures", "table", 24, 9),
            Place("dead_letter_groups", "table", 12, 9),
            Place("dead_letters", "table", 12, 9),
            Place("refused_requests", "table", 24, 9),
            Place("log_gaps", "table", 24, 6),
        ),
    ),
}


def _panel(number: int, place: Place, x: int, y: int) -> dict[str, Any]:
    query = load(place.query)
    panel: dict[str, Any] = {
        "id": number,
        "type": place.kind,
        "title": place.title or query.title,
        "description": query.meaning,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": place.width, "h": place.height},
        "targets": [_target(query, place.kind)],
    }
    return panel | _LOOKS[place.kind](place, query)


def _target(query: Query, kind: str) -> dict[str, Any]:
    is_series = kind == "timeseries"
    return {
        "refId": "A",
        "datasource": SOURCE,
        "editorType": "sql",
        "queryType": "timeseries" if is_series else "table",
        "format": FORMAT_SERIES if is_series else FORMAT_TABLE,
        "rawSql": to_grafana(query),
    }


def _series(_place: Place, query: Query) -> dict[str, Any]:
    custom = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}
    return {
        "fieldConfig": {
            "defaults": {"unit": UNITS[query.unit], "min": 0, "custom": custom},
            "overrides": [
                {
                    "matcher": {"id": "byName", "options": name},
                    "properties": [
                        {"id": "color", "value": {"mode": "fixed", "fixedColor": color}}
                    ],
                }
                for name, color in STATUS_COLORS.items()
            ],
        },
        "options": {
            "legend": {
                "displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def _stat(place: Place, _query: Query) -> dict[str, Any]:
    return {
        "fieldConfig": {
            "defaults": {"unit": UNITS.get(place.unit, "short"), "noValue": "–"},
            "overrides": [],
        },
        "options": {
            "reduceOptions": {
                "calcs": ["lastNotNull"], "fields": f"/^{place.field}$/", "values": False,
            },
            "colorMode": "value",
            "graphMode": "none",
            "textMode": "value",
        },
    }


def _table(_place: Place, _query: Query) -> dict[str, Any]:
    units = (("_ms$", "ms"), ("_percent$", "percent"))
    return {
        "fieldConfig": {
            "defaults": {"custom": {"filterable": True}},
            "overrides": [
                {
                    "matcher": {"id": "byRegexp", "options": pattern},
                    "properties": [{"id": "unit", "value": unit}],
                }
                for pattern, unit in units
            ],
        },
        "options": {"showHeader": True, "cellHeight": "sm"},
    }


_LOOKS: Final = {"timeseries": _series, "stat": _stat, "table": _table}


def dashboard(name: str) -> dict[str, Any]:
    """One dashboard: its places from left to right, row by row."""
    title, places = DASHBOARDS[name]
    panels, x, y, row_height = [], 0, 0, 0
    for number, place in enumerate(places, 1):
        if x + place.width > COLUMNS:
            x, y, row_height = 0, y + row_height, 0
        panels.append(_panel(number, place, x, y))
        x, row_height = x + place.width, max(row_height, place.height)
    return {
        "uid": f"tidemill-{name}",
        "title": title,
        "tags": ["tidemill"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,
        "links": [
            {"type": "dashboards", "tags": ["tidemill"], "title": "Tidemill", "asDropdown": False}
        ],
        "panels": panels,
    }


def render() -> dict[str, str]:
    """Path -> text."""
    return {
        f"{FOLDER}/{name}.json": json.dumps(dashboard(name), indent=2, ensure_ascii=False) + "\n"
        for name in DASHBOARDS
    }
