"""The page of schedules: a list with what comes next and what came last, and its buttons.

Owns what is shown of a schedule and the routes of the page. Refuses to know how schedules are read
and commanded (`tidemill.agents.api.schedules`). It is complete without ClickHouse, but for the
last ticks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from tidemill.agents.api.pages import Pages
from tidemill.agents.api.problems import Problem
from tidemill.agents.api.reader import Reader, ReadFailed
from tidemill.agents.api.routes import PAGE_ROWS
from tidemill.agents.api.schedules import ScheduleCommander
from tidemill.agents.schedule_log import next_of, rule_of, state_of
from tidemill.schemas.requests import TYPE_LENGTH_MAX
from tidemill.schemas.schedules import USER_PREFIX, ScheduleRecord

Word = Literal["pause", "resume", "run"]
Name = Annotated[str, Query(max_length=TYPE_LENGTH_MAX)]
TABS: Final = (
    ("", "All"), ("paused", "Paused"), ("orphaned", "Orphaned"), ("problem", "Cannot run"),
)
TONES: Final = {"paused": "warn", "orphaned": "mute", "problem": "bad", "live": "run"}
WORDS: Final = {"code": "on", "live": "by command", "problem": "cannot run"}
TOLD: Final[dict[str, str]] = {
    "pause": "is paused: it has no ticks until it is resumed.",
    "resume": "goes on from now.",
    "run": "has a tick now; its job shows up here in seconds.",
}
"""Command that was obeyed -> what the page says of the schedule."""


@dataclass(frozen=True, slots=True)
class Row:
    """One schedule as it is shown."""

    record: ScheduleRecord
    rule: str
    next_at: str | None
    state: str
    last: Mapping[str, Any] | None  # its latest job; None: none, or nobody knows

    @property
    def tone(self) -> str:
        """The colour of its state."""
        return TONES.get(self.state, "good")

    @property
    def word(self) -> str:
        """Its state in a word."""
        return WORDS.get(self.state, self.state)

    @property
    def user_id(self) -> str:
        """The user of its jobs."""
        return USER_PREFIX + self.record.name


def matching(
    records: Iterable[ScheduleRecord], text: str, state: str, after: str
) -> list[ScheduleRecord]:
    """Those of a state, with `text` in name or type, by name, behind the name `after`."""
    text = text.lower()
    found = [
        record for record in records
        if record.name > after
        and (text in record.name.lower() or text in record.spec.type.lower())
        and state in ("", state_of(record))
    ]
    return sorted(found, key=lambda record: record.name)


def rows_of(
    records: Iterable[ScheduleRecord], last: Mapping[str, Mapping[str, Any]], now_ms: int
) -> list[Row]:
    """`last`: the latest job of each, by the schedule's name."""
    return [
        Row(record, rule_of(record.spec), _text(next_of(record, now_ms)), state_of(record),
            last.get(record.name))
        for record in records
    ]


def _text(at_ms: int | None) -> str | None:
    return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()


class SchedulePage:
    """The page's routes."""

    def __init__(self, pages: Pages, reader: Reader, commander: ScheduleCommander) -> None:
        self._pages = pages
        self._reader = reader
        self._commander = commander

    def router(self) -> APIRouter:
        """None of them is in the API's description."""
        router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

        @router.get("/schedules")
        async def schedules(
            request: Request, q: Name = "", state: Name = "", after: Name = "", told: Name = "",
            name: Name = "",
        ) -> Response:
            values = await self._list(q, state, after)
            if request.headers.get("hx-request"):
                return self._pages.render("_schedules.html", **values)
            said = TOLD.get(told)
            return self._pages.render(
                "schedules.html", active="schedules", tabs=_tabs(q, state),
                told=None if said is None else (name, said), **values,
            )

        def add(word: Word) -> None:
            @router.post(f"/schedule/{word}")
            async def command(name: Name) -> Response:
                await self._commander.ask(word, name, "page")
                return RedirectResponse(
                    f"/schedules?{urlencode({'told': word, 'name': name})}", 303
                )

        add("pause")
        add("resume")
        add("run")
        return router

    async def _list(self, text: str, state: str, after: str) -> dict[str, Any]:
        asked = {"q": text, "state": state, "after": after}
        here = "/schedules?" + urlencode({key: value for key, value in asked.items() if value})
        values: dict[str, Any] = {
            "here": here, "q": text, "state": state, "after": after, "rows": [],
            "next_path": None, "away": None, "outage": None, "schedules": 0,
        }
        try:
            records = await self._commander.records()
        except Problem as problem:
            return values | {"away": problem.detail}
        found = matching(records.values(), text, state, after)
        page = found[:PAGE_ROWS]
        last, outage = await self._last_of(page)
        rows = await asyncio.to_thread(rows_of, page, last, int(time.time() * 1000))
        if len(found) > PAGE_ROWS:
            following = asked | {"after": page[-1].name}
            values["next_path"] = "/schedules?" + urlencode(
                {key: value for key, value in following.items() if value}
            )
        return values | {"rows": rows, "outage": outage, "schedules": len(records)}

    async def _last_of(
        self, records: list[ScheduleRecord]
    ) -> tuple[dict[str, dict[str, Any]], str | None]:
        """Their latest jobs, and why they are not known."""
        if not records:
            return {}, None
        user_ids = ",".join([USER_PREFIX + record.name for record in records])
        try:
            rows = await self._reader.rows("schedule_runs", user_ids=user_ids, limit=PAGE_ROWS)
        except ReadFailed as error:
            return {}, error.detail
        return {row["schedule"]: row for row in rows}, None


def _tabs(text: str, state: str) -> list[dict[str, Any]]:
    tabs = []
    for word, label in TABS:
        chosen = {key: value for key, value in (("q", text), ("state", word)) if value}
        path = "/schedules?" + urlencode(chosen)
        tabs.append({"label": label, "path": path, "is_here": word == state})
    return tabs
