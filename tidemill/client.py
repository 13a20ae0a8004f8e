"""Asking for jobs and waiting for their ends: `Client`, and `AsyncClient` with the same methods.

Owns the public face for programs that are no workers. Refuses to know how records travel
(`tidemill.sending`), how ends are found (`tidemill.completions`) and what is a valid request
(`tidemill.requests`).

    with Client(kafka="127.0.0.1:9092") as client:
        handle = client.enqueue("greet", user_id="u1", payload={"name": "Ada"})
        print(client.wait(handle).result)
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, Self, overload

from confluent_kafka import Message
from pydantic import BaseModel

from tidemill.agents.settings import CommonSettings, load
from tidemill.answers import (
    ANSWER_SECONDS,
    AnswerTimeout,
    CommandAnswer,
    CommandReceipt,
    wait_for_answer,
)
from tidemill.bridge import LoopBridges, LoopPromise
from tidemill.client_schedules import AsyncClientSchedules, ClientSchedules
from tidemill.completed import CompletedJob, ResultMismatch
from tidemill.completions import Completions, Waiter
from tidemill.handles import Binding, JobHandle, R, TypedHandle
from tidemill.looking_back import LookingBack
from tidemill.requests import (
    ClientError,
    InvalidRequest,
    JobIds,
    Request,
    encode,
    encode_command,
)
from tidemill.schemas.topics import Topics
from tidemill.sending import DELIVERY_SECONDS, Compression, EnqueueFailed, Record, Sender
from tidemill.sent import CommandWord, Sending, sent, sent_async
from tidemill.waiting import WAIT_SECONDS, WaitTimeout, wait, wait_async

CLOCK_SLACK_MS: Final = 10_000  # our clock may be ahead of the ledger's by this much

Payload = Mapping[str, Any] | BaseModel | None


def records_of(
    requests: Iterable[Request], handles: list[JobHandle], topic: str,
    next_id: Callable[[], str], now_ms: int, binding: Binding,
) -> Iterator[Record]:
    """The records of many requests, one by one; `handles` gets the handle of each before it."""
    for number, request in enumerate(requests):
        job_id = next_id() if request.job_id is None else request.job_id
        try:
            value = encode(request, job_id)
        except InvalidRequest as error:
            raise InvalidRequest(
                f"request {number}: {error}; those before it may have been sent"
            ) from None
        handle = JobHandle(job_id, request.user_id, request.type, topic, now_ms)
        handles.append(handle.bound(binding))
        yield request.user_id, value


class _Core:
    """What both clients do; no method waits, but for `enqueue_many`."""

    def __init__(
        self,
        kafka: str | None,
        clickhouse: str | None,
        topic_prefix: str | None,
        timeout_seconds: float,
        compression: Compression,
    ) -> None:
        settings = load(CommonSettings, kafka=kafka, topic_prefix=topic_prefix)
        self.topics = Topics(settings.topic_prefix)
        self.kafka = settings.kafka
        self.timeout_seconds = timeout_seconds
        self.is_closed = False
        self.binding: Binding = weakref.ref(self)
        self._bridges = LoopBridges()
        self._ids = JobIds()
        self._sender = Sender(settings.kafka, timeout_seconds, compression)
        self._completions = Completions(
            settings.kafka, self.topics.completed, self.topics.state
        )
        self._history = (
            None if clickhouse is None else LookingBack(clickhouse, self._completions.tell)
        )

    def enqueue(self, request: Request) -> Sending:
        job_id = self._ids.next() if request.job_id is None else request.job_id
        value = encode(request, job_id)
        now_ms = time.time_ns() // 1_000_000
        topic = self.topics.requested

        def handle(message: Message) -> JobHandle:
            return JobHandle(
                job_id, request.user_id, request.type, topic, now_ms,
                message.partition(), message.offset(),
            ).bound(self.binding)

        return partial(self._sender.try_send, topic, (request.user_id, value), job_id, handle)

    def enqueue_many(self, requests: Iterable[Request]) -> list[JobHandle]:
        handles: list[JobHandle] = []
        topic, now_ms = self.topics.requested, time.time_ns() // 1_000_000
        records = records_of(requests, handles, topic, self._ids.next, now_ms, self.binding)
        self._sender.send_many(topic, records)
        return handles

    def command(self, word: CommandWord, user_id: str, job_id: str, **said: Any) -> Sending:
        def receipt(message: Message) -> CommandReceipt:
            return CommandReceipt(
                word, user_id, job_id, message.partition() or 0, message.offset() or 0, now_ms
            )

        now_ms = time.time_ns() // 1_000_000
        value = encode_command(word, user_id, job_id, self._ids.next(), said)
        record = (user_id, value)
        return partial(self._sender.try_send, self.topics.commands, record, job_id, receipt)

    def answer(self, receipt: CommandReceipt, timeout: float) -> CommandAnswer:
        return wait_for_answer(self.kafka, self.topics, receipt, timeout)

    def waiter(self, job: JobHandle, run: int) -> Waiter:
        """Register a wait. Requests and ends of a user share the number of their partition."""
        waiter = Waiter(
            (job.user_id, job.job_id), run, job.enqueued_at - CLOCK_SLACK_MS, job.partition,
            job.enqueued_at,
        )
        self._completions.wait_for(waiter)
        return waiter

    def forget(self, waiter: Waiter) -> None:
        self._completions.forget(waiter)

    def ask_clickhouse(self, waiter: Waiter, seconds: float) -> None:
        """Look for the end there, beside the topic; nothing while an earlier look goes on."""
        if self._history is not None:
            self._history.ask(waiter, seconds)

    def promise(self) -> LoopPromise:
        """Something for the running loop to wait for."""
        return self._bridges.promise()

    def close(self, seconds: float | None = None) -> None:
        """`seconds`: each part at most; None: as long as acknowledgements may take."""
        self.is_closed = True
        if self._history is not None:
            self._history.close()
        self._completions.close(seconds)
        self._sender.close(seconds)


class Client:
    """Asks for jobs and waits for their ends. Safe to share between threads; close it at the end.

    In a process that was forked the copy makes connections of its own; what was under way at the
    fork is the parent's alone.

    `kafka`: HOST:PORT, several with commas; None: TIDEMILL_KAFKA or 127.0.0.1:9092.
    `clickhouse`: http://HOST:PORT; lets `wait` find jobs that had ended long before.
    `timeout_seconds`: how long a broker may be away before `enqueue` gives up.
    `compression`: of the requests; `gzip` where payloads are large texts.
    """

    def __init__(
        self,
        kafka: str | None = None,
        clickhouse: str | None = None,
        topic_prefix: str | None = None,
        *,
        timeout_seconds: float = DELIVERY_SECONDS,
        compression: Compression = "none",
    ) -> None:
        self._core = _Core(kafka, clickhouse, topic_prefix, timeout_seconds, compression)
        self.schedules: Final = ClientSchedules(self._core)

    def enqueue(
        self,
        type: str,
        *,
        user_id: str,
        payload: Payload = None,
        job_id: str | None = None,
        queue: str | None = None,
        priority: Literal["high", "medium", "low"] | None = None,
        run_at: datetime | None = None,
        expires_at: datetime | None = None,
        unique_key: str | None = None,
        max_attempts: int | None = None,
        timeout_seconds: float | None = None,
        source: str | None = None,
        tags: Sequence[str] = (),
        batch_id: str | None = None,
        parent_job_id: str | None = None,
    ) -> JobHandle:
        """Ask for one job; returns once Kafka has it on all in-sync replicas.

        Raises InvalidRequest for what the engine would refuse, EnqueueFailed when Kafka did not
        take it.
        """
        request = Request(
            type=type, user_id=user_id, payload=payload, job_id=job_id, queue=queue,
            priority=priority, run_at=run_at, expires_at=expires_at, unique_key=unique_key,
            max_attempts=max_attempts, timeout_seconds=timeout_seconds, source=source, tags=tags,
            batch_id=batch_id, parent_job_id=parent_job_id,
        )
        handle: JobHandle = sent(self._core.enqueue(request), self._core.timeout_seconds)
        return handle

    def enqueue_many(self, requests: Iterable[Request]) -> list[JobHandle]:
        """Ask for many jobs; returns once Kafka has them all, in the order of `requests`.

        Raises InvalidRequest with the number of the wrong request (those before it may have been
        sent), EnqueueFailed with the ids of the jobs that Kafka did not take.
        """
        return self._core.enqueue_many(requests)

    @overload
    def wait(
        self, job: TypedHandle[R], timeout: float = WAIT_SECONDS, *, run: int = 1
    ) -> CompletedJob[R | None]: ...

    @overload
    def wait(
        self, job: JobHandle, timeout: float = WAIT_SECONDS, *, run: int = 1
    ) -> CompletedJob[Any]: ...

    def wait(
        self, job: JobHandle, timeout: float = WAIT_SECONDS, *, run: int = 1
    ) -> CompletedJob[Any]:
        """The job's end, whatever it is: look at `status`. `run`: that run's or a later one's.

        Raises WaitTimeout after `timeout` seconds.
        """
        return job.read(wait(self._core, job, timeout, run))

    def cancel(
        self, user_id: str, job_id: str, *, reason: str | None = None, actor: str | None = None
    ) -> CommandReceipt:
        """Ask to end a waiting job, or a running one to stop.

        A job that nobody has asked for yet ends as soon as its request comes: the cancel is kept
        for a day.
        """
        receipt: CommandReceipt = sent(
            self._core.command("cancel", user_id, job_id, reason=reason, actor=actor),
            self._core.timeout_seconds,
        )
        return receipt

    def redrive(
        self, user_id: str, job_id: str, *, reason: str | None = None, actor: str | None = None
    ) -> CommandReceipt:
        """Ask to run a failed job again, as its next run."""
        receipt: CommandReceipt = sent(
            self._core.command("redrive", user_id, job_id, reason=reason, actor=actor),
            self._core.timeout_seconds,
        )
        return receipt

    def signal(
        self, user_id: str, job_id: str, name: str, value: Any = None, *,
        actor: str | None = None,
    ) -> CommandReceipt:
        """Give a value to the handler that waits by that name (`ctx.wait`), or will wait.

        `value`: JSON, a pydantic model or a dataclass, at most 64 KiB. The first signal of a name
        counts; later ones are refused. One that comes before its wait, or before the job's request,
        is kept for a day. `answer` says what became of it. Raises InvalidRequest, EnqueueFailed.
        """
        receipt: CommandReceipt = sent(
            self._core.command("signal", user_id, job_id, name=name, value=value, actor=actor),
            self._core.timeout_seconds,
        )
        return receipt

    def answer(
        self, receipt: CommandReceipt, timeout: float = ANSWER_SECONDS
    ) -> CommandAnswer:
        """What the ledger did on a command. Raises AnswerTimeout after `timeout` seconds."""
        return self._core.answer(receipt, timeout)

    @property
    def is_closed(self) -> bool:
        return self._core.is_closed

    def close(self) -> None:
        """Wait for what is under way, then close the connections."""
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClient:
    """`Client` for a running event loop: the same arguments and methods, to be awaited."""

    def __init__(
        self,
        kafka: str | None = None,
        clickhouse: str | None = None,
        topic_prefix: str | None = None,
        *,
        timeout_seconds: float = DELIVERY_SECONDS,
        compression: Compression = "none",
    ) -> None:
        self._core = _Core(kafka, clickhouse, topic_prefix, timeout_seconds, compression)
        self.schedules: Final = AsyncClientSchedules(self._core)

    async def enqueue(
        self,
        type: str,
        *,
        user_id: str,
        payload: Payload = None,
        job_id: str | None = None,
        queue: str | None = None,
        priority: Literal["high", "medium", "low"] | None = None,
        run_at: datetime | None = None,
        expires_at: datetime | None = None,
        unique_key: str | None = None,
        max_attempts: int | None = None,
        timeout_seconds: float | None = None,
        source: str | None = None,
        tags: Sequence[str] = (),
        batch_id: str | None = None,
        parent_job_id: str | None = None,
    ) -> JobHandle:
        """As `Client.enqueue`."""
        request = Request(
            type=type, user_id=user_id, payload=payload, job_id=job_id, queue=queue,
            priority=priority, run_at=run_at, expires_at=expires_at, unique_key=unique_key,
            max_attempts=max_attempts, timeout_seconds=timeout_seconds, source=source, tags=tags,
            batch_id=batch_id, parent_job_id=parent_job_id,
        )
        handle: JobHandle = await sent_async(
            self._core.enqueue(request), self._core.promise(), self._core.timeout_seconds
        )
        return handle

    async def enqueue_many(self, requests: Iterable[Request]) -> list[JobHandle]:
        """As `Client.enqueue_many`; runs in a thread."""
        return await asyncio.to_thread(self._core.enqueue_many, requests)

    @overload
    async def wait(
        self, job: TypedHandle[R], timeout: float = WAIT_SECONDS, *, run: int = 1
    ) -> CompletedJob[R | None]: ...

    @overload
    async def wait(
        self, job: JobHandle, timeout: float = WAIT_SECONDS, *, run: int = 1
    ) -> CompletedJob[Any]: ...

    async def wait(
        self, job: JobHandle, timeout: float = WAIT_SECONDS, *, run: int = 1
    ) -> CompletedJob[Any]:
        """As `Client.wait`."""
        return job.read(await wait_async(self._core, job, timeout, run))

    async def cancel(
        self, user_id: str, job_id: str, *, reason: str | None = None, actor: str | None = None
    ) -> CommandReceipt:
        """As `Client.cancel`."""
        command = self._core.command("cancel", user_id, job_id, reason=reason, actor=actor)
        receipt: CommandReceipt = await sent_async(
            command, self._core.promise(), self._core.timeout_seconds
        )
        return receipt

    async def redrive(
        self, user_id: str, job_id: str, *, reason: str | None = None, actor: str | None = None
    ) -> CommandReceipt:
        """As `Client.redrive`."""
        command = self._core.command("redrive", user_id, job_id, reason=reason, actor=actor)
        receipt: CommandReceipt = await sent_async(
            command, self._core.promise(), self._core.timeout_seconds
        )
        return receipt

    async def signal(
        self, user_id: str, job_id: str, name: str, value: Any = None, *,
        actor: str | None = None,
    ) -> CommandReceipt:
        """As `Client.signal`."""
        command = self._core.command(
            "signal", user_id, job_id, name=name, value=value, actor=actor
        )
        receipt: CommandReceipt = await sent_async(
            command, self._core.promise(), self._core.timeout_seconds
        )
        return receipt

    async def answer(
        self, receipt: CommandReceipt, timeout: float = ANSWER_SECONDS
    ) -> CommandAnswer:
        """As `Client.answer`; runs in a thread."""
        return await asyncio.to_thread(self._core.answer, receipt, timeout)

    @property
    def is_closed(self) -> bool:
        return self._core.is_closed

    async def close(self) -> None:
        """As `Client.close`; runs in a thread."""
        await asyncio.to_thread(self._core.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def enqueue_and_wait(client: Client | AsyncClient, request: Request) -> JobHandle:
    """As `Client.enqueue`, whichever client it is."""
    core = client._core
    handle: JobHandle = sent(core.enqueue(request), core.timeout_seconds)
    return handle


async def enqueue_on_loop(client: Client | AsyncClient, request: Request) -> JobHandle:
    """As `AsyncClient.enqueue`, whichever client it is."""
    core = client._core
    handle: JobHandle = await sent_async(
        core.enqueue(request), core.promise(), core.timeout_seconds
    )
    return handle


__all__ = [
    "AnswerTimeout",
    "AsyncClient",
    "Client",
    "ClientError",
    "CommandAnswer",
    "CommandReceipt",
    "CompletedJob",
    "EnqueueFailed",
    "InvalidRequest",
    "JobHandle",
    "Request",
    "ResultMismatch",
    "TypedHandle",
    "WaitTimeout",
]
