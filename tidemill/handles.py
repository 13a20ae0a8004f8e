"""Handles: what asking for a job gives back, and the way from there to the job's end.

Owns the handle's fields, which client it waits with, and how it travels to another process. Refuses
to know how a wait is done (`tidemill.waiting`) and what a result's type is (`tidemill.typed_jobs`).

A handle does not keep its client alive. One of a typed call waits with the default client of the
process that it is in, so it may be pickled, and used in a copy of its process.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self

from typing_extensions import TypeVar

from tidemill.completed import CompletedJob
from tidemill.requests import ClientError
from tidemill.waiting import WAIT_SECONDS, Connection, wait, wait_async

if TYPE_CHECKING:
    from tidemill.answers import CommandReceipt  # loads a Kafka client
    from tidemill.typed_jobs import Job

R = TypeVar("R", default=Any, covariant=True)

Binding = weakref.ref[Any]
"""To the connections of a client."""


class _Bound:
    """What a handle knows beside its fields: `asdict`, equality and pickles leave it out."""

    __slots__ = ("_binding",)

    _binding: Binding | None


@dataclass(frozen=True, slots=True)
class JobHandle(_Bound):
    """A job that Kafka has acknowledged: keep it to wait for its end.

    `partition` and `offset` say where the request is on `topic`; None after `enqueue_many`, which
    learns only of failures. `enqueued_at` is epoch milliseconds, just before it was sent.
    """

    job_id: str
    user_id: str
    type: str
    topic: str
    enqueued_at: int
    partition: int | None = None
    offset: int | None = None

    async def result(self, timeout: float = WAIT_SECONDS, *, run: int = 1) -> CompletedJob[Any]:
        """The job's end, whatever it is: look at `status`. `run`: that run's or a later one's.

        Waits with the client that made this handle. Raises WaitTimeout after `timeout` seconds,
        ClientError when that client is gone.
        """
        return self.read(await wait_async(self._connection(), self, timeout, run))

    def result_sync(self, timeout: float = WAIT_SECONDS, *, run: int = 1) -> CompletedJob[Any]:
        """As `result`, for programs without an event loop."""
        return self.read(wait(self._connection(), self, timeout, run))

    async def signal(
        self, name: str, value: Any = None, *, actor: str | None = None
    ) -> CommandReceipt:
        """As `Client.signal` for this job, with the client that `result` waits with."""
        from tidemill.sent import sent_async  # late: a module of handlers loads no Kafka client

        core = self._connection()
        command = core.command(
            "signal", self.user_id, self.job_id, name=name, value=value, actor=actor
        )
        receipt: CommandReceipt = await sent_async(command, core.promise(), core.timeout_seconds)
        return receipt

    def signal_sync(
        self, name: str, value: Any = None, *, actor: str | None = None
    ) -> CommandReceipt:
        """As `signal`, for programs without an event loop."""
        from tidemill.sent import sent

        core = self._connection()
        command = core.command(
            "signal", self.user_id, self.job_id, name=name, value=value, actor=actor
        )
        receipt: CommandReceipt = sent(command, core.timeout_seconds)
        return receipt

    def read(self, end: CompletedJob) -> CompletedJob[Any]:
        """The end as this handle types it: here, as it is."""
        return end

    def bound(self, binding: Binding) -> Self:
        """This handle, which waits with that client from now on."""
        object.__setattr__(self, "_binding", binding)
        return self

    def _connection(self) -> Connection:
        binding: Binding | None = getattr(self, "_binding", None)
        if binding is None:
            raise ClientError(
                f"the handle of job {self.job_id} knows no client: it was made by hand, copied, or "
                "came from another process; use client.wait(handle)"
            )
        connection: Connection | None = binding()
        if connection is None:
            raise ClientError(
                f"the client that made the handle of job {self.job_id} is gone, and handles keep "
                "none alive; keep the client, or use another one's client.wait(handle)"
            )
        return connection


class TypedHandle(JobHandle, Generic[R]):
    """A handle of a typed call: the end's `result` has the type that the handler returns."""

    __slots__ = ("_job",)

    _job: Job[Any, R]

    @classmethod
    def of(cls, handle: JobHandle, job: Job[Any, R], *, keeps_client: bool) -> TypedHandle[R]:
        """The handle of that job's type. `keeps_client`: it waits with the client that made it."""
        typed: TypedHandle[R] = cls(
            handle.job_id, handle.user_id, handle.type, handle.topic, handle.enqueued_at,
            handle.partition, handle.offset,
        )
        object.__setattr__(typed, "_job", job)
        return typed.bound(handle._binding) if keeps_client and handle._binding else typed

    async def result(
        self, timeout: float = WAIT_SECONDS, *, run: int = 1
    ) -> CompletedJob[R | None]:
        """The job's end, whatever it is: `result` is None unless `status` is succeeded.

        `run`: that run's or a later one's. Waits with the default client, or with the one that was
        given to the call. Raises WaitTimeout after `timeout` seconds, ResultMismatch for a result
        that the handler's return annotation does not read.
        """
        return await super().result(timeout, run=run)

    def result_sync(
        self, timeout: float = WAIT_SECONDS, *, run: int = 1
    ) -> CompletedJob[R | None]:
        """As `result`, for programs without an event loop."""
        return super().result_sync(timeout, run=run)

    def read(self, end: CompletedJob) -> CompletedJob[R | None]:
        """The end with its result as the handler's return annotation reads it."""
        return self._job.read_end(end)

    def _connection(self) -> Connection:
        if getattr(self, "_binding", None) is not None:
            return super()._connection()
        from tidemill.shared_client import default_client

        return default_client()._core

    def __getstate__(self) -> tuple[list[Any], Job[Any, R]]:
        fields = [getattr(self, name) for name in JobHandle.__dataclass_fields__]
        return fields, self._job

    def __setstate__(self, state: tuple[list[Any], Job[Any, R]]) -> None:
        fields, job = state
        for name, value in zip(JobHandle.__dataclass_fields__, fields, strict=True):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_job", job)
