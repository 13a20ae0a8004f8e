"""`add`: a request becomes a row of the caller's own transaction.

Owns the check before the row and the handle after it. The rules are those of the ledger
(`tidemill.requests.encode`), so that a wrong request fails where it is made and not at the relay.
Refuses to begin, flush or commit anything: the transaction is the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, Unpack, overload

from sqlalchemy import Connection, insert

from tidemill import job_types
from tidemill.agents.settings import CommonSettings, load
from tidemill.handles import JobHandle, TypedHandle
from tidemill.job_types import FunctionJob
from tidemill.outbox.table import OutboxRow, table
from tidemill.requests import JobIds, Request, encode
from tidemill.schemas.topics import Topics
from tidemill.typed_jobs import EnqueueOptions, Job

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    Target = (
        Session | AsyncSession | Connection | scoped_session[Any] | async_scoped_session[Any]
    )

P = TypeVar("P")
R = TypeVar("R")
Y = ParamSpec("Y")

_IDS: Final = JobIds()


@overload
def add(to: Target, call: Request, /) -> JobHandle: ...


@overload
def add(
    to: Target, call: FunctionJob[P, Y, Awaitable[R]], payload: P, /,
    **options: Unpack[EnqueueOptions],
) -> TypedHandle[R]: ...


@overload
def add(
    to: Target, call: FunctionJob[P, Y, R], payload: P, /, **options: Unpack[EnqueueOptions]
) -> TypedHandle[R]: ...


@overload
def add(
    to: Target, call: job_types.Job[P, R], payload: P, /, **options: Unpack[EnqueueOptions]
) -> TypedHandle[R]: ...


def add(to: Target, call: Any, payload: Any = None, /, **options: Any) -> JobHandle:
    """Ask for a job when, and only when, the transaction of `to` is committed.

    `to`: a Session, an AsyncSession (nothing to await) or a Connection; of an AsyncConnection
    `await connection.run_sync(outbox.add, request)`. `call`: a `Request`, or a job with its payload
    and options as in `Job.enqueue`. The handle's job is known to Kafka some time after the commit.

    Raises InvalidRequest, before any row is written, for what the engine would refuse.
    """
    job = call if isinstance(call, Job) else None
    if job is not None:
        request: Request = job.request(payload, **options)
    elif not isinstance(call, Request):
        raise TypeError(
            f"outbox.add: a {type(call).__name__} is no request; give a tidemill.Request, or a job "
            "and its payload"
        )
    elif payload is not None or options:
        raise TypeError("outbox.add: a Request holds its payload and options; give it alone")
    else:
        request = call
    job_id = _IDS.next() if request.job_id is None else request.job_id
    now_ms = time.time_ns() // 1_000_000
    row = {
        "user_id": request.user_id, "job_id": job_id, "created_at": now_ms,
        "value": encode(request, job_id),
    }
    _write(to, row)
    topic = Topics(load(CommonSettings).topic_prefix).requested
    handle = JobHandle(job_id, request.user_id, request.type, topic, now_ms)
    return handle if job is None else TypedHandle.of(handle, job, keeps_client=False)


def _write(to: Any, row: dict[str, Any]) -> None:
    if isinstance(to, Connection):
        to.execute(insert(table).values(row))
    elif callable(getattr(to, "add", None)) and hasattr(to, "flush"):
        to.add(OutboxRow(**row))
    elif hasattr(to, "run_sync"):
        raise TypeError(
            f"outbox.add: a {type(to).__name__} must be awaited; write "
            "await connection.run_sync(outbox.add, request)"
        )
    else:
        raise TypeError(
            f"outbox.add: a {type(to).__name__} has no transaction; give a Session, an "
            "AsyncSession or a Connection of SQLAlchemy"
        )
