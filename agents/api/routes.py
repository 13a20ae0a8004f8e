"""The JSON API: panels, jobs, and asking for a job.

Owns paths, parameters and the shape of answers under `/api`. Refuses to know SQL and HTML.
"""

from __future__ import annotations

import base64
import binascii
import uuid
from typing import Annotated, Any, Final
from urllib.parse import quote, urlencode

import orjson
from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from tidemill.agents import queries
from tidemill.agents.api.metrics import Metrics
from tidemill.agents.api.problems import Problem
from tidemill.agents.api.producer import Enqueuer
from tidemill.agents.api.reader import Reader, ReadFailed, Rows
from tidemill.schemas.codec import Refusal, parse_json
from tidemill.schemas.doors import Refused, encode_request
from tidemill.schemas.requests import ID_LENGTH_MAX, REQUEST_BYTES_MAX, JobRequest
from tidemill.schemas.words import State

PAGE_ROWS: Final = 50  # rows of a list that nobody sized
OFFSET_MAX: Final = 2**32 - 1  # as the query has it: UInt32
STORY_EVENTS: Final = 500  # events of one answer; a job of 20,000 events pages
CANDIDATES: Final = (4_000, 100_000, 5_000_000)
"""Rows that a list looks at, first and when they do not fill a page: most pages need the first."""
NO_CURSOR: Final = 2**63  # epoch ms, later than every job
DOTS: Final = ("", ".", "..")

Minutes = Annotated[
    int, Query(ge=1, le=queries.MINUTES_MAX, description="How far back the window reaches.")
]
Limit = Annotated[int, Query(ge=1, le=queries.LIMIT_MAX, description="Rows, at most.")]
Text = Annotated[str, Query(max_length=ID_LENGTH_MAX)]
Offset = Annotated[int, Query(ge=0, le=OFFSET_MAX)]


class Panel(BaseModel):
    """The rows of one panel and what they mean."""

    name: str
    title: str
    meaning: str
    unit: str
    minutes: int | None = Field(description="The window; null when the panel has none.")
    rows: list[dict[str, Any]]


class JobsPage(BaseModel):
    """One page of a list of jobs."""

    jobs: list[dict[str, Any]]
    next: str | None = Field(description="Cursor of the next page; null on the last.")


class JobStory(BaseModel):
    """A job: its latest state and its events, oldest first."""

    job: dict[str, Any]
    others: list[dict[str, Any]] = Field(
        description="Jobs of other users, or older incarnations, with the same id."
    )
    events: list[dict[str, Any]]
    next_offset: int | None = Field(description="Where the next page of events begins.")


class Asked(BaseModel):
    """The answer to a request for a job."""

    job_id: str
    user_id: str
    status: str = Field(description="requested: Kafka has it; the ledger has not yet spoken.")
    links: dict[str, str]


def read_problem(error: ReadFailed) -> Problem:
    """ClickHouse's absence as a problem."""
    if error.is_outage:
        return Problem(503, "clickhouse-unavailable", error.detail)
    return Problem(500, "query-failed", error.detail)


def job_path(job_id: str, user_id: str = "", *, prefix: str = "") -> str:
    """The address of a job. Ids that a browser would take for a path go into the query."""
    if any(part in DOTS for part in job_id.split("/")) or "\\" in job_id:
        fields = {"job_id": job_id} | ({"user_id": user_id} if user_id else {})
        return f"{prefix}/job?{urlencode(fields)}"
    tail = f"?{urlencode({'user_id': user_id})}" if user_id else ""
    return f"{prefix}/jobs/{quote(job_id, safe='')}{tail}"


def encode_cursor(row: dict[str, Any]) -> str:
    """The last row of a page, opaque."""
    values = [row["incarnation"], row["user_id"], row["job_id"]]
    return base64.urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")


def decode_cursor(cursor: str) -> dict[str, object]:
    """Parameters of `jobs_list`; Problem when it is not a cursor of ours."""
    if not cursor:
        return {"before_incarnation": NO_CURSOR, "before_user_id": "", "before_job_id": ""}
    try:
        values = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        incarnation, user_id, job_id = values
        if not (isinstance(incarnation, int) and 0 <= incarnation <= NO_CURSOR):
            raise ValueError(incarnation)
    except (binascii.Error, ValueError, TypeError) as error:
        raise Problem(
            422, "invalid-cursor", "cursor: not one of ours; take it from `next`, or leave it out",
            field="cursor",
        ) from error
    return {
        "before_incarnation": incarnation,
        "before_user_id": str(user_id),
        "before_job_id": str(job_id),
    }


def check_status(status: str) -> str:
    """One status or several with commas; '' for all."""
    known = {state.value for state in State}
    unknown = [word for word in status.split(",") if word and word not in known]
    if unknown:
        raise Problem(
            422, "invalid-parameter",
            f"status: {unknown[0]!r} is none; use {', '.join(sorted(known))}", field="status",
        )
    return ",".join(word for word in status.split(",") if word)


async def list_jobs(
    reader: Reader, filters: dict[str, str], cursor: str, limit: int
) -> tuple[Rows, str | None]:
    """A page of jobs and the cursor of the next one."""
    status = check_status(filters.get("status", ""))
    params: dict[str, Any] = {
        key: filters.get(key, "")
        for key in ("type", "queue", "user_id", "job_id", "tag", "batch", "parent")
    }
    params |= decode_cursor(cursor)
    rows: Rows = []
    for candidates in CANDIDATES:
        rows = await reader.rows(
            "jobs_list", status=status, candidates=candidates, limit=limit + 1, **params
        )
        if len(rows) > limit:
            break
    page = rows[:limit]
    return page, encode_cursor(page[-1]) if len(rows) > limit else None


async def find_job(
    reader: Reader, job_id: str, user_id: str, offset: int
) -> tuple[dict[str, Any] | None, Rows, Rows, int | None]:
    """(job, others with this id, its events, offset of the next events)."""
    found = await reader.rows("job", job_id=job_id, user_id=user_id, limit=queries.DEFAULT_LIMIT)
    if not found:
        return None, [], [], None
    job, others = found[0], found[1:]
    events = await reader.rows(
        "job_story", job_id=job_id, user_id=job["user_id"], limit=STORY_EVENTS + 1, offset=offset
    )
    more = offset + STORY_EVENTS if len(events) > STORY_EVENTS else None
    return job, others, events[:STORY_EVENTS], more


def no_such_job(job_id: str) -> Problem:
    """404, and how soon a new job shows up."""
    return Problem(
        404, "unknown-job", f"no job {job_id!r} is known; a new one shows up within three seconds, "
        "and ids are case-sensitive", field="job_id",
    )


def build_routes(reader: Reader, enqueuer: Enqueuer, metrics: Metrics) -> APIRouter:
    """All routes under /api."""
    router = APIRouter(prefix="/api")
    _add_stats(router, reader)
    _add_jobs(router, reader)
    _add_enqueue(router, enqueuer, metrics)
    return router


def _is_panel(query: queries.Query) -> bool:
    """Whether a window and a bound say all that it asks."""
    return not set(query.params) - {"since", "until", "step_seconds", "limit"}


def _add_stats(router: APIRouter, reader: Reader) -> None:
    @router.get("/stats", summary="The panels that there are")
    async def list_panels() -> list[dict[str, str]]:
        found = [query for name in queries.names() if _is_panel(query := queries.load(name))]
        return [{"name": q.name, "title": q.title, "meaning": q.meaning} for q in found]

    @router.get("/stats/{name}", summary="The rows of one panel")
    async def panel(
        name: str, minutes: Minutes = queries.DEFAULT_MINUTES,
        limit: Limit = queries.DEFAULT_LIMIT,
    ) -> Panel:
        try:
            query = queries.load(name)
        except queries.UnknownQuery as error:
            raise Problem(404, "unknown-panel", str(error), field="name") from error
        if not _is_panel(query):
            raise Problem(
                404, "unknown-panel", f"{name!r} is served under /api/jobs, not here", field="name"
            )
        window = minutes if "since" in query.params else None
        extra = {"limit": limit} if "limit" in query.params else {}
        rows = await reader.rows(name, window, **extra)
        return Panel(
            name=name, title=query.title, meaning=query.meaning, unit=query.unit, minutes=window,
            rows=rows,
        )


def _add_jobs(router: APIRouter, reader: Reader) -> None:
    @router.get("/jobs", summary="Jobs by filter, the newest first")
    async def jobs(
        status: Text = "", type: Text = "", queue: Text = "", user_id: Text = "",
        job_id: Text = "", tag: Text = "", batch: Text = "", parent: Text = "",
        cursor: Annotated[str, Query(max_length=2_048)] = "", limit: Limit = PAGE_ROWS,
    ) -> JobsPage:
        filters = {
            "status": status, "type": type, "queue": queue, "user_id": user_id, "job_id": job_id,
            "tag": tag, "batch": batch, "parent": parent,
        }
        rows, following = await list_jobs(reader, filters, cursor, limit)
        return JobsPage(jobs=rows, next=following)

    async def story(job_id: str, user_id: str, offset: int) -> JobStory:
        job, others, events, more = await find_job(reader, job_id, user_id, offset)
        if job is None:
            raise no_such_job(job_id)
        return JobStory(job=job, others=others, events=events, next_offset=more)

    @router.get("/job", summary="A job by an id that does not fit a path")
    async def job_by_query(
        job_id: Text, user_id: Text = "", offset: Offset = 0
    ) -> JobStory:
        return await story(job_id, user_id, offset)

    @router.get("/jobs/{job_id:path}", summary="A job and its story")
    async def job_by_path(
        job_id: Annotated[str, Path(max_length=ID_LENGTH_MAX)], user_id: Text = "",
        offset: Offset = 0,
    ) -> JobStory:
        return await story(job_id, user_id, offset)


def _add_enqueue(router: APIRouter, enqueuer: Enqueuer, metrics: Metrics) -> None:
    @router.post(
        "/jobs", status_code=202, response_model=Asked, summary="Ask for a job",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": JobRequest.model_json_schema()}},
            }
        },
    )
    async def enqueue(
        request: Request, idempotency_key: Annotated[str | None, Header()] = None
    ) -> JSONResponse:
        body = await read_body(request)
        job_id = _job_id(body, idempotency_key)
        try:
            value = encode_request(body | {"job_id": job_id})
        except Refused as error:
            raise refused_request(error.refusal) from None
        traceparent = request.headers.get("traceparent")
        headers: list[tuple[str, str | bytes | None]] = (
            [("traceparent", traceparent)] if traceparent else []
        )
        user_id: str = body["user_id"]
        await enqueuer.send(user_id, value, headers)
        metrics.enqueued.inc()
        path = job_path(job_id, user_id, prefix="/api")
        answer = Asked(
            job_id=job_id, user_id=user_id, status="requested",
            links={"job": path, "page": job_path(job_id, user_id)},
        )
        return JSONResponse(answer.model_dump(), 202, headers={"Location": path})


async def read_body(request: Request) -> dict[str, Any]:
    """The JSON object of a request, within the bounds of every door. Raises Problem."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise Problem(
            415, "unsupported-media-type",
            f"content-type {content_type!r}: send the request as application/json",
            field="Content-Type",
        )
    value = bytearray()
    async for chunk in request.stream():
        value += chunk
        if len(value) > REQUEST_BYTES_MAX:
            raise Problem(
                413, "request-too-large", f"at most {REQUEST_BYTES_MAX} bytes are taken; store the "
                "data elsewhere and send a reference",
            )
    body = parse_json(bytes(value))
    if isinstance(body, Refusal):
        raise refused_request(body, status=400)
    if not isinstance(body, dict):
        raise Problem(400, "not-an-object", "the body is not a JSON object; send {…}")
    return body


def _job_id(body: dict[str, Any], key: str | None) -> Any:
    """The idempotency key is the job's id; without both, a new one."""
    given = body.get("job_id")
    if key is not None and given is not None and given != key:
        raise Problem(
            422, "conflicting-ids", "job_id and the header Idempotency-Key differ; send one, or "
            "the same in both", field="Idempotency-Key",
        )
    if key is not None:
        return key
    return str(uuid.uuid4()) if given is None else given


def refused_request(refusal: Refusal, status: int = 422) -> Problem:
    """What the ledger would refuse."""
    return Problem(
        status, "invalid-request", refusal.message, field=refusal.field, code=refusal.code.value
    )
