"""`@job`: makes a function the handler of a job type.

Owns the public decorator. Refuses to run anything: it checks the definition and registers it; a
worker that loads the module runs it. What a program does with the result is `Job`'s.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

from tidemill.agents.worker.durations import Duration, seconds_of
from tidemill.agents.worker.errors import JobDefinitionError
from tidemill.agents.worker.handlers import (
    DEFAULT_ATTEMPTS,
    DEFAULT_QUEUE,
    DEFAULT_TIMEOUT_SECONDS,
    REGISTRY,
    build_handler,
)
from tidemill.job_types import JobDecorator
from tidemill.policies import Backoff, Concurrency, RateLimit
from tidemill.schemas.wire import ConcurrencySpec
from tidemill.typed_jobs import JOBS, Job


def job(
    type: str,
    *,
    queue: str = DEFAULT_QUEUE,
    max_attempts: int = DEFAULT_ATTEMPTS,
    timeout_seconds: Duration = DEFAULT_TIMEOUT_SECONDS,
    backoff: Backoff | None = None,
    limits: Sequence[RateLimit | Concurrency] = (),
    unique_by: Literal["user"] | None = None,
    collapse_by: str | None = None,
    process: bool = False,
) -> JobDecorator:
    """Run the function for jobs of this type.

    The function takes a pydantic model or a dict, and a `tidemill.Context` when it wants one.
    `async def` runs on the worker's loop, `def` in a thread, and `process=True` in a process of its
    own, which is ended when the time is over. What it returns is the job's result. The decorated
    function is a `Job`: it is called as before, and `await it.enqueue(payload, user_id=…)` asks for
    one.

    max_attempts counts the first one. timeout_seconds is for one attempt (a number of seconds, or a
    text such as "5min"). limits hold per user. unique_by="user": a second live job of the same user
    and type ends as skipped. collapse_by="payload.report_id": requests of a user for the same value
    share the run of the first while it waits or runs; each ends as skipped (`collapsed`) with its
    id, status and result.

    Raises JobDefinitionError, at import, that names what is wrong and what to write.
    """
    if callable(type):
        raise JobDefinitionError(
            f"@job needs the job's type: write @job('mail.send') in place of @job, above {type!r}"
        )
    outer = sys._getframe(1)

    def register(function: Callable[..., Any]) -> Job[Any, Any]:
        handler = build_handler(
            type,
            function,
            queue=queue,
            max_attempts=max_attempts,
            timeout_seconds=seconds_of(timeout_seconds, f"@job({type!r}): timeout_seconds"),
            backoff=None if backoff is None else _backoff(type, backoff).spec(),
            limits=[each.spec() for each in _limits(type, limits) if isinstance(each, RateLimit)],
            concurrency=_concurrency(type, limits),
            unique_by=unique_by,
            collapse_by=collapse_by,
            process=process,
            local_names=outer.f_locals,
        )
        REGISTRY.add(handler)
        decorated: Job[Any, Any] = Job(handler, function, outer.f_locals)
        JOBS.add(decorated)
        return decorated

    return cast(JobDecorator, register)


def _backoff(type_name: str, given: object) -> Backoff:
    if not isinstance(given, Backoff):
        raise JobDefinitionError(
            f"@job({type_name!r}): backoff={given!r} is no backoff; write "
            'Backoff.exponential("2s", factor=2, jitter=0.2, cap="5min")'
        )
    return given


def _limits(type_name: str, given: Sequence[object]) -> list[RateLimit | Concurrency]:
    found: list[RateLimit | Concurrency] = []
    for each in given:
        if not isinstance(each, RateLimit | Concurrency):
            raise JobDefinitionError(
                f"@job({type_name!r}): {each!r} in limits is no limit; write "
                'RateLimit("1/h", by="user", over="skip") or Concurrency(2, by="user")'
            )
        found.append(each)
    return found


def _concurrency(type_name: str, given: Sequence[object]) -> ConcurrencySpec | None:
    found = [each.spec() for each in given if isinstance(each, Concurrency)]
    if len(found) > 1:
        raise JobDefinitionError(
            f"@job({type_name!r}): limits has {len(found)} times Concurrency; leave the smallest"
        )
    return found[0] if found else None
