"""Cancel, redrive and signal over HTTP: send the command, wait for the ledger's answer, say it.

Owns the way from a request to the answer's words. Refuses to know what a command may do to a job
(`tidemill.streams.lifecycle`). The answer is read from the log itself, so it needs no ClickHouse
when the user is named.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, Field

from tidemill.agents.answers import CommandAnswer, CommandReceipt
from tidemill.agents.answers import wait_for_answer as wait
from tidemill.agents.api.problems import Problem, answer_problems
from tidemill.agents.api.producer import Enqueuer
from tidemill.agents.api.reader import Reader
from tidemill.agents.api.routes import (
    Text,
    job_path,
    no_such_job,
    read_body,
    refused_request,
)
from tidemill.schemas.doors import Refused, encode_command
from tidemill.schemas.requests import ID_LENGTH_MAX, SignalCommand
from tidemill.schemas.topics import Topics

THREADS: Final = 8  # answers that are waited for at once; each has a consumer of its own
USERS_MAX: Final = 2  # with the same job id: one is meant, two are not
REASON_LENGTH_MAX: Final = 200  # characters of a reason that somebody gives

SIGNAL_FIELDS: Final = ("name", "value", "actor")  # what a signal's body may say

Word = Literal["cancel", "redrive"]  # those that are asked for without a body
Why = Annotated[
    str, Query(max_length=REASON_LENGTH_MAX, description="Why; kept in the job's history.")
]


class Commanded(BaseModel):
    """What the ledger did on a command."""

    job_id: str
    user_id: str
    command: str
    event: str = Field(
        description="cancelled, cancel_requested, redriven, resumed or signal_kept."
    )
    reason: str | None
    until: str | None = Field(
        default=None, description="signal_kept: until when the signal waits for the handler."
    )
    links: dict[str, str]


class Commander:
    """Sends commands and waits for their answers."""

    def __init__(self, kafka: str, topic_prefix: str, enqueuer: Enqueuer, reader: Reader) -> None:
        self._kafka = kafka
        self._topics = Topics(topic_prefix)
        self._enqueuer = enqueuer
        self._reader = reader
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tidemill-answer")

    def close(self) -> None:
        """Let the threads go; who still waits gets no answer."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(
        self, word: Word, job_id: str, user_id: str, reason: str, actor: str
    ) -> Commanded:
        """The answer; Problem for one that is no, or none."""
        user_id = user_id or await self._owner_of(job_id)
        return await self._obeyed(
            {"command": word, "user_id": user_id, "job_id": job_id, "actor": actor,
             "reason": reason or None}
        )

    async def signal(self, job_id: str, user_id: str, given: dict[str, Any]) -> Commanded:
        """The same for a signal. `given`: some of SIGNAL_FIELDS."""
        user_id = user_id or await self._owner_of(job_id)
        return await self._obeyed(
            {"actor": "api", **given, "command": "signal", "user_id": user_id, "job_id": job_id}
        )

    async def _obeyed(self, body: dict[str, Any]) -> Commanded:
        answer = await self._ask(body)
        word, user_id, job_id = body["command"], body["user_id"], body["job_id"]
        if answer.is_unknown_job:
            raise _unknown(job_id, user_id, answer)
        if not answer.is_done:
            raise Problem(
                409, "command-refused",
                f"the {word} of job {job_id!r} was refused: {_words(answer.reason)}",
                field="job_id", reason=answer.reason,
            )
        return Commanded(
            job_id=job_id, user_id=user_id, command=word, event=answer.event,
            reason=answer.reason, until=answer.until,
            links={
                "job": job_path(job_id, user_id, prefix="/api"), "page": job_path(job_id, user_id)
            },
        )

    async def _owner_of(self, job_id: str) -> str:
        rows = await self._reader.rows("job", job_id=job_id, user_id="", limit=USERS_MAX)
        users = {row["user_id"] for row in rows}
        if not users:
            raise no_such_job(job_id)
        if len(users) > 1:
            raise Problem(
                422, "several-users", f"several users have a job {job_id!r}; name one with user_id",
                field="user_id",
            )
        return str(users.pop())

    async def _ask(self, body: dict[str, Any]) -> CommandAnswer:
        given = {name: each for name, each in body.items() if each is not None}
        try:
            value = encode_command(given)
        except Refused as error:
            raise refused_request(error.refusal) from None
        sent_at = int(time.time() * 1000)
        partition, offset = await self._enqueuer.send_to(
            self._topics.commands, body["user_id"], value, []
        )
        receipt = CommandReceipt(
            body["command"], body["user_id"], body["job_id"], partition, offset, sent_at
        )
        loop = asyncio.get_running_loop()
        with answer_problems():
            return await loop.run_in_executor(
                self._threads, wait, self._kafka, self._topics, receipt
            )


def _words(reason: str | None) -> str:
    return (reason or "it does not fit the job's state").replace("_", " ")


def _unknown(job_id: str, user_id: str, answer: CommandAnswer) -> Problem:
    kept = "" if answer.until is None else (
        f"; the cancel is kept until {answer.until} and ends the job as soon as its request comes"
    )
    return Problem(
        404, "unknown-job", f"user {user_id!r} has no job {job_id!r}, or it ended long ago{kept}",
        field="job_id", until=answer.until,
    )


def add_commands(router: APIRouter, commander: Commander) -> None:
    """The routes under /api."""

    def add(word: Word, meaning: str) -> None:
        @router.post(f"/job/{word}", summary=f"{meaning}, by an id that does not fit a path")
        async def by_query(job_id: Text, user_id: Text = "", reason: Why = "") -> Commanded:
            return await commander.run(word, job_id, user_id, reason, "api")

        @router.post(f"/jobs/{{job_id:path}}/{word}", summary=f"{meaning}; waits for the answer")
        async def by_path(
            job_id: Annotated[str, Path(max_length=ID_LENGTH_MAX)], user_id: Text = "",
            reason: Why = "",
        ) -> Commanded:
            return await commander.run(word, job_id, user_id, reason, "api")

    add("cancel", "End a waiting job, or ask a running one to stop")
    add("redrive", "Run a failed job again, as its next run")
    _add_signal(router, commander)


def _add_signal(router: APIRouter, commander: Commander) -> None:
    """The body has the signal's name, and its value and actor where they are given."""
    schema = SignalCommand.model_json_schema()
    told = {name: schema["properties"][name] for name in SIGNAL_FIELDS}
    body = {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "object", "properties": told, "required": ["name"]}
                }
            },
        }
    }

    async def signal(request: Request, job_id: str, user_id: str) -> Commanded:
        given = await read_body(request)
        for field in given:
            if field not in SIGNAL_FIELDS:
                raise Problem(
                    422, "invalid-request",
                    f"unknown field {field!r}; known fields: {', '.join(SIGNAL_FIELDS)}; put your "
                    "own data in value", field=field,
                )
        return await commander.signal(job_id, user_id, given)

    @router.post(
        "/job/signal", openapi_extra=body, summary="Give a value to a handler that waits, by an id "
        "that does not fit a path",
    )
    async def by_query(request: Request, job_id: Text, user_id: Text = "") -> Commanded:
        return await signal(request, job_id, user_id)

    @router.post(
        "/jobs/{job_id:path}/signal", openapi_extra=body,
        summary="Give a value to a handler that waits; waits for the answer",
    )
    async def by_path(
        request: Request, job_id: Annotated[str, Path(max_length=ID_LENGTH_MAX)],
        user_id: Text = "",
    ) -> Commanded:
        return await signal(request, job_id, user_id)
