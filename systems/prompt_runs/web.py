"""The web app: the old system's paths and shapes, and what its authors wished for.

Owns HTTP: the secret, the shapes, which call asks for which job; and the relay that takes what was
asked for from the outbox to Kafka. Run it with `uvicorn systems.prompt_runs.web:app`. Refuses to
know how a run is made.
"""

from __future__ import annotations

import hmac
import html
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field

from systems.prompt_runs import store
from systems.prompt_runs.data import FAILED, QUEUED, PromptJob, engine
from systems.prompt_runs.jobs import FAN_OUT_USER, day_of_today, fan_out, run_again
from systems.prompt_runs.settings import SECRET_VARIABLE, STATUS_ROWS_MAX
from systems.prompt_runs.store import Filter
from tidemill import ClientError, default_client, outbox

Status = Literal["queued", "processing", "succeeded", "failed", "skipped"]
log = logging.getLogger(__name__)


def check_secret(authorization: Annotated[str | None, Header()] = None) -> None:
    """The secret in `Authorization`, bare or as Bearer. Without a setting nobody comes in."""
    secret = os.environ.get(SECRET_VARIABLE)
    if not secret:
        raise HTTPException(503, f"set {SECRET_VARIABLE}; until then nobody is let in")
    given = (authorization or "").strip()
    scheme, _, rest = given.partition(" ")
    if scheme.lower() == "bearer" and rest:
        given = rest.strip()
    if not hmac.compare_digest(given.encode(), secret.encode()):
        raise HTTPException(401, "the secret in Authorization is missing or wrong")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """The relay runs as long as the app: what a call wrote to the outbox gets to Kafka."""
    with outbox.Relay(engine()):
        yield


app = FastAPI(title="Prompt runs", dependencies=[Depends(check_secret)], lifespan=lifespan)


@app.exception_handler(ClientError)
async def kafka_is_away(_: Request, error: ClientError) -> JSONResponse:
    """Nothing was asked for: the caller tries again."""
    return JSONResponse({"detail": f"the job could not be asked for: {error}"}, 503)


class ProcessBody(BaseModel):
    """Which run."""

    jobId: int


class PromptBody(BaseModel):
    """Which prompt."""

    promptId: int


class BatchBody(BaseModel):
    """What becomes of a batch's runs: those that wait or run are cancelled, failed ones tried."""

    action: Literal["cancel", "retry"]
    status: Status | None = Field(default=None, description="only runs in this state")


@app.get("/api/cron")
def cron() -> dict[str, Any]:
    """Asks for today's fan-out, as the schedule does at 0:00 UTC."""
    day = day_of_today()
    handle = fan_out.enqueue_sync(day, user_id=FAN_OUT_USER)
    return {"success": True, "batchKey": day.batch_key, "fanOutJobId": handle.job_id}


@app.post("/api/process-prompt", deprecated=True)
def process_prompt(body: PromptBody, response: Response) -> dict[str, Any]:
    """The old way: runs one prompt, due or not, once a day. Use /api/cron and /api/jobs/process."""
    log.warning("/api/process-prompt is deprecated: use /api/jobs/process")
    response.headers["Deprecation"] = "true"
    response.headers["Link"] = '</api/jobs/process>; rel="successor-version"'
    if not store.is_active(engine(), body.promptId):
        raise HTTPException(404, f"there is no active prompt {body.promptId}")
    day = day_of_today(body.promptId)
    handle = fan_out.enqueue_sync(day, user_id=FAN_OUT_USER)
    return {"success": True, "batchKey": day.batch_key, "fanOutJobId": handle.job_id}


@app.post("/api/jobs/process", status_code=202)
def process(body: ProcessBody) -> dict[str, Any]:
    """Asks for a run. One that waits or runs is run once; a failed one runs again."""
    row = _row(body.jobId)
    run_again([row.id], QUEUED, FAILED)
    return {"success": True, "jobId": row.id, "status": _row(row.id).status}


@app.get("/api/jobs/status")
def status(
    jobId: int | None = None, batchKey: str | None = None, promptId: int | None = None,
    status: Annotated[Status | None, Query()] = None,
) -> dict[str, Any]:
    """At most 100 runs, the newest first, and how many there are in each state."""
    wanted = Filter(jobId, batchKey, promptId, status)
    counted = store.counts(engine(), wanted)
    return {
        "summary": {"total": sum(counted.values()), **counted},
        "jobs": [_shape(row) for row in store.find(engine(), wanted, STATUS_ROWS_MAX)],
    }


@app.delete("/api/jobs/{job_id}")
def cancel(job_id: int) -> dict[str, Any]:
    """Cancels a run that has not ended."""
    row = _row(job_id)
    return {"success": True, "jobId": row.id, "cancelled": _cancel([row.id])}


@app.post("/api/batches/{batch_key}")
def change_batch(batch_key: str, body: BatchBody) -> dict[str, Any]:
    """Cancels or retries a whole batch; says how many runs that changed."""
    rows = store.ids(engine(), Filter(batch_key=batch_key, status=body.status))
    changed = _cancel(rows) if body.action == "cancel" else run_again(rows, FAILED)
    return {"success": True, "batchKey": batch_key, "changed": changed}


@app.get("/api/metrics")
def metrics() -> dict[str, Any]:
    """Runs by state, and calls, tokens, dollars and time by model and outcome."""
    return {"jobs": store.counts(engine(), Filter()), "models": store.spending(engine())}


@app.get("/metrics", response_class=HTMLResponse)
def metrics_page() -> str:
    """The same as a page."""
    told = metrics()
    jobs = _table([told["jobs"]])
    return f"<!doctype html><title>Prompt runs</title><h1>Runs</h1>{jobs}<h1>Models</h1>" + _table(
        told["models"]
    )


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "<p>None yet.</p>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in row.values()) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _row(job_id: int) -> PromptJob:
    rows = store.find(engine(), Filter(job_id=job_id), 1)
    if not rows:
        raise HTTPException(404, f"there is no job {job_id}")
    return rows[0]


def _cancel(row_ids: list[int]) -> int:
    """The rows first: a cancelled row is never run, whatever becomes of the word to the engine."""
    rows = store.skip(engine(), row_ids)
    for row in rows:
        for job_id in row.job_ids:
            default_client().cancel(row.user_id, job_id, reason="cancelled", actor="api")
    return len(rows)


def _shape(row: PromptJob) -> dict[str, Any]:
    return {
        "id": row.id, "promptId": row.prompt_id, "modelId": row.model_id,
        "runIndex": row.run_index, "batchKey": row.batch_key, "status": row.status,
        "errorMessage": row.error_message, "attemptCount": row.attempt_count,
        "scheduledFor": _iso(row.scheduled_for), "startedAt": _iso(row.started_at),
        "finishedAt": _iso(row.finished_at), "createdAt": _iso(row.created_at),
        "prompt": {"id": row.prompt.id, "text": row.prompt.text},
        "model": {"id": row.model.id, "provider": row.model.provider, "name": row.model.name},
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
