"""The web page: routes that answer HTML, and the fragments that keep it live.

Owns which panels make which page, and the login. Refuses to know SQL; numbers come from
`tidemill.agents.queries`, formats from `tidemill.agents.api.view`.

Every page is complete without a script; with one, its parts ask for themselves again every two
seconds while the tab can be seen.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from tidemill.agents import queries
from tidemill.agents.api import view
from tidemill.agents.api.charts import chart_data
from tidemill.agents.api.commands import Commander, Word
from tidemill.agents.api.description import operations
from tidemill.agents.api.problems import Problem
from tidemill.agents.api.reader import Reader, ReadFailed
from tidemill.agents.api.routes import (
    PAGE_ROWS,
    Minutes,
    Offset,
    Text,
    find_job,
    job_path,
    list_jobs,
    no_such_job,
    read_problem,
)
from tidemill.agents.api.security import Gate, read_form, safe_next
from tidemill.schemas.words import (
    IN_FLIGHT_STATES,
    TERMINAL_STATES,
    WAITING_STATES,
    EventKind,
    State,
)

FOLDER: Final = Path(__file__).parent
WINDOWS: Final = ((5, "5 min"), (15, "15 min"), (60, "1 h"), (360, "6 h"), (1_440, "24 h"))
PANEL_ROWS: Final = 8  # rows of a table on the first page; the list has the rest
FILTERS_MAX: Final = 200  # types and queues offered as filters
ALIVE: Final = ",".join(sorted(WAITING_STATES | IN_FLIGHT_STATES | {State.AWAITING}))
TOLD: Final = {
    EventKind.CANCELLED.value: "Cancelled.",
    EventKind.CANCEL_REQUESTED.value: "The worker is asked to stop.",
    EventKind.REDRIVEN.value: "Redriven: it runs again.",
}
"""Answer to a command -> what the job's page says above its story, which follows in seconds."""
STATUS_TABS: Final = (
    ("", "All"),
    (ALIVE, "Live"),
    ("succeeded", "Succeeded"),
    ("failed", "Failed"),
    ("skipped", "Skipped"),
    ("cancelled", "Cancelled"),
    ("expired", "Expired"),
)


def build_templates(ports: view.Ports) -> Environment:
    """Templates that escape everything and stumble over a name that is not there."""
    templates = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in (
        "number", "rate", "percent", "duration", "absolute", "clock", "tone", "pretty_json",
        "missing",
    ):
        templates.filters[name] = getattr(view, name)
    templates.globals["job_path"] = job_path
    templates.globals["first_job"] = ports.first_job()
    return templates


class Pages:
    """The routes of the page over one reader."""

    def __init__(
        self, reader: Reader, gate: Gate, commander: Commander, ports: view.Ports
    ) -> None:
        self._reader = reader
        self._gate = gate
        self._commander = commander
        self._ports = ports
        self._templates = build_templates(ports)

    def render(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A page; every template knows whether there is a login."""
        text = self._templates.get_template(template).render(
            has_login=self._gate.needs_token, **values
        )
        return HTMLResponse(text, status)

    def render_problem(self, _request: Request, problem: Problem) -> Response:
        """An error as a page."""
        page = self.render("error.html", problem.status, problem=problem, active="")
        page.headers.update(problem.headers)
        return page

    def router(self) -> APIRouter:
        """All routes; none of them is in the API's description."""
        router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
        self._add_overview(router)
        self._add_jobs(router)
        self._add_job(router)
        self._add_commands(router)
        self._add_login(router)
        self._add_description(router)
        return router

    def _add_description(self, router: APIRouter) -> None:
        @router.get("/docs")
        async def docs(request: Request) -> Response:
            origin = str(request.base_url).rstrip("/")
            told = operations(request.app.openapi(), origin)
            return self.render("docs.html", active="", at="docs", operations=told)

    # --- the first page ---------------------------------------------------------------------------

    def _add_overview(self, router: APIRouter) -> None:
        @router.get("/")
        async def overview(minutes: Minutes = queries.DEFAULT_MINUTES) -> Response:
            values = await self._kpis(minutes) | await self._tables(minutes)
            return self.render(
                "overview.html", active="overview", windows=WINDOWS, minutes=minutes, **values
            )

        @router.get("/fragments/kpis")
        async def kpis(minutes: Minutes = queries.DEFAULT_MINUTES) -> Response:
            return self.render("_kpis.html", minutes=minutes, **await self._kpis(minutes))

        @router.get("/fragments/tables")
        async def tables(minutes: Minutes = queries.DEFAULT_MINUTES) -> Response:
            return self.render("_tables.html", minutes=minutes, **await self._tables(minutes))

        @router.get("/fragments/charts")
        async def charts(minutes: Minutes = queries.DEFAULT_MINUTES) -> Response:
            try:
                return JSONResponse(await chart_data(self._reader, minutes))
            except ReadFailed as error:
                raise read_problem(error) from error

    async def _kpis(self, minutes: int) -> dict[str, Any]:
        rows = self._reader.rows
        try:
            totals, latency, states, gaps = await asyncio.gather(
                rows("totals", minutes), rows("latency", minutes), rows("states_now"),
                rows("log_gaps", limit=PANEL_ROWS),
            )
        except ReadFailed as error:
            return {
                "outage": error.detail, "totals": None, "latency": None, "now": {}, "gaps": []
            }
        now = {row["status"]: row["jobs"] for row in states}
        return {
            "outage": None,
            "gaps": gaps,
            "totals": totals[0],
            "latency": latency[0],
            "now": now,
            "waiting": sum(now.get(state, 0) for state in WAITING_STATES),
            "in_flight": sum(now.get(state, 0) for state in IN_FLIGHT_STATES),
            "jobs": sum(now.values()),
        }

    async def _tables(self, minutes: int) -> dict[str, Any]:
        rows = self._reader.rows
        windowed = (
            "error_rate_by_type", "error_codes", "latency_by_type", "queues", "hand_backs",
            "last_failures",
        )
        try:
            states, nobody, groups, refused, *rest = await asyncio.gather(
                rows("states_now"),
                rows("nobody_runs", limit=PANEL_ROWS),
                rows("dead_letter_groups", limit=PANEL_ROWS),
                rows("refused_requests", limit=PANEL_ROWS),
                *(rows(name, minutes, limit=PANEL_ROWS) for name in windowed),
            )
        except ReadFailed:
            return {"is_away": True}
        return {
            "is_away": False,
            "states": states,
            "nobody_runs": nobody,
            "jobs_most": max((row["jobs"] for row in states), default=0),
            "dead_letter_groups": groups,
            "refused_requests": refused,
            **dict(zip(windowed, rest, strict=True)),
        }

    # --- the list ---------------------------------------------------------------------------------

    def _add_jobs(self, router: APIRouter) -> None:
        @router.get("/jobs")
        async def jobs(
            request: Request, status: Text = "", type: Text = "", queue: Text = "",
            user_id: Text = "", job_id: Text = "", tag: Text = "", batch: Text = "",
            parent: Text = "",
            cursor: Annotated[str, Query(max_length=2_048)] = "",
        ) -> Response:
            filters = {
                "status": status, "type": type, "queue": queue, "user_id": user_id,
                "job_id": job_id, "tag": tag, "batch": batch, "parent": parent,
            }
            values = await self._list(filters, cursor)
            if request.headers.get("hx-request"):
                return self.render("_jobs.html", **values)
            choices: dict[str, Any] = await self._choices()
            active = "dead" if status == State.FAILED else "jobs"
            return self.render(
                "jobs.html", active=active, tabs=self._tabs(filters), **values,
                **choices,
            )

    async def _list(self, filters: dict[str, str], cursor: str) -> dict[str, Any]:
        here = "/jobs?" + urlencode({key: value for key, value in filters.items() if value})
        values: dict[str, Any] = {
            "filters": filters, "cursor": cursor, "here": here, "outage": None,
            "has_filter": any(filters.values()),
        }
        try:
            rows, following = await list_jobs(self._reader, filters, cursor, PAGE_ROWS)
        except ReadFailed as error:
            return values | {"outage": error.detail, "rows": [], "next_path": None}
        next_path = f"{here}&{urlencode({'cursor': following})}" if following else None
        return values | {"rows": rows, "next_path": next_path}

    async def _choices(self) -> dict[str, list[str]]:
        try:
            seen = await self._reader.rows("types", limit=FILTERS_MAX)
        except ReadFailed:
            seen = []
        return {
            "types": sorted({row["type"] for row in seen if row["type"]}),
            "queues": sorted({row["queue"] for row in seen if row["queue"]}),
        }

    def _tabs(self, filters: dict[str, str]) -> list[dict[str, Any]]:
        tabs = []
        for status, label in STATUS_TABS:
            chosen = {key: value for key, value in filters.items() if value and key != "status"}
            chosen |= {"status": status} if status else {}
            is_here = filters["status"] == status
            tabs.append({"label": label, "path": "/jobs?" + urlencode(chosen), "is_here": is_here})
        return tabs

    # --- one job ----------------------------------------------------------------------------------

    def _add_job(self, router: APIRouter) -> None:
        async def answer(request: Request, job_id: str, user_id: str, offset: int) -> Response:
            template = "_job.html" if request.headers.get("hx-request") else "job.html"
            try:
                values = await self._job(job_id, user_id, offset)
            except ReadFailed as error:
                return self.render(
                    "job_away.html", active="jobs", outage=error.detail, job_id=job_id
                )
            told = TOLD.get(request.query_params.get("told", ""))
            return self.render(template, active="jobs", told=told, **values)

        @router.get("/job")
        async def by_query(
            request: Request, job_id: Text, user_id: Text = "",
            offset: Offset = 0,
        ) -> Response:
            return await answer(request, job_id, user_id, offset)

        @router.get("/jobs/{job_id:path}")
        async def by_path(
            request: Request, job_id: str, user_id: Text = "",
            offset: Offset = 0,
        ) -> Response:
            return await answer(request, job_id, user_id, offset)

    async def _job(self, job_id: str, user_id: str, offset: int) -> dict[str, Any]:
        job, others, events, more = await find_job(self._reader, job_id, user_id, offset)
        if job is None:
            raise no_such_job(job_id)
        story = view.build_story(events, job["incarnation"])
        wait = story.wait if job["status"] == State.AWAITING else None
        here = job_path(job["job_id"], job["user_id"])
        join = "&" if "?" in here else "?"
        return {
            "job": job,
            "others": others,
            "story": story,
            "is_ended": job["status"] in {state.value for state in TERMINAL_STATES},
            "cli_show": self._ports.show(job["job_id"], job["user_id"]),
            "cli_signal": self._ports.signal(job, wait["name"]) if wait is not None
            and wait.get("kind") == "signal" else None,
            "wait": wait,
            "cli_again": self._ports.again(job, story.payload) if story.has_payload else None,
            "ids": urlencode({"job_id": job["job_id"], "user_id": job["user_id"]}),
            "api_path": job_path(job["job_id"], job["user_id"], prefix="/api"),
            "here": f"{here}{join}offset={offset}",
            "more_path": f"{here}{join}offset={more}" if more is not None else None,
            "offset": offset,
        }

    def _add_commands(self, router: APIRouter) -> None:
        """Buttons of a job's page. A form of another origin is refused before it comes here."""

        def add(word: Word) -> None:
            @router.post(f"/job/{word}")
            async def command(job_id: Text, user_id: Text) -> Response:
                done = await self._commander.run(word, job_id, user_id, "", "page")
                path = job_path(done.job_id, done.user_id)
                join = "&" if "?" in path else "?"
                return RedirectResponse(f"{path}{join}told={done.event}", 303)

        add("cancel")
        add("redrive")

    # --- the login --------------------------------------------------------------------------------

    def _add_login(self, router: APIRouter) -> None:
        @router.get("/login")
        async def form(next: Annotated[str, Query(max_length=2_048)] = "/") -> Response:
            if not self._gate.needs_token:
                return RedirectResponse("/", 303)
            return self.render("login.html", active="", next=safe_next(next), is_wrong=False)

        @router.post("/login")
        async def login(request: Request) -> Response:
            fields = await read_form(request)
            target = safe_next(fields.get("next", "/"))
            if not self._gate.is_token(fields.get("token", "")):
                return self.render("login.html", 401, active="", next=target, is_wrong=True)
            answer = RedirectResponse(target, 303)
            self._gate.let_in(answer, is_https=request.url.scheme == "https")
            return answer
