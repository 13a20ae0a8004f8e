"""Cancel and redrive over HTTP: send the command, wait for the ledger's answer, say it.

Owns the way from a request to the answer's words. Refuses to know what a command may do to a job
(`tidemill.streams.lifecycle`). The answer is read from the log itself, so it needs no ClickHouse
when the user is named.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field, ValidationError

from tidemill.agents.answers import CommandAnswer, CommandReceipt
from tidemill.agents.answers import wait_for_answer as wait
from tidemill.agents.api.problems import Problem, answer_problems, invalid_parameter
from tidemill.agents.api.producer import Enqueuer
from tidemill.agents.api.reader import Reader
from tidemill.agents.api.routes import Text, job_path, no_such_job
from tidemill.schemas.requests import ID_LENGTH_MAX, Command
from tidemill.schemas.topics import Topics

THREADS: Final = 8  # answers that are waited for at once; each has a consumer of its own
USERS_MAX: Final = 2  # with the same job id: one is meant, two are not
REASON_LENGTH_MAX: Final = 200  # characters of a reason that somebody gives

Word = Literal["cancel", "redrive"]
Why = Annotated[
    str, Query(max_length=REASON_LENGTH_MAX, description="Why; kept in the job's history.")
]


class Commanded(BaseModel):
    """What the ledger did on a command."""

    job_id: str
    user_id: str
    command: str
    event: str = Field(description="cancelled, cancel_requested or redriven.")
    reason: str | None
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
        answer = await self._ask(word, job_id, user_id, reason, actor)
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
            reason=answer.reason,
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

    async def _ask(
        self, word: Word, job_id: str, user_id: str, reason: str, actor: str
    ) -> CommandAnswer:
        try:
            command = Command(
                command=word, user_id=user_id, job_id=job_id, actor=actor, reason=reason or None
            )
        except ValidationError as error:
            raise invalid_parameter(error) from None
        sent_at = int(time.time() * 1000)
        partition, offset = await self._enqueuer.send_to(
            self._topics.commands, user_id, command.model_dump_json(exclude_none=True).encode(), []
        )
        receipt = CommandReceipt(word, user_id, job_id, partition, offset, sent_at)
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
