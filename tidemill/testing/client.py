"""The client of an engine under test: `tidemill.Client` over topics in memory.

Owns sending and waiting there; checks and handles are the client's own. Refuses to know Kafka.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from tidemill.answers import CommandReceipt
from tidemill.bridge import LoopBridges, LoopPromise
from tidemill.client import Client, records_of
from tidemill.client_schedules import ClientSchedules
from tidemill.completions import Waiter
from tidemill.handles import JobHandle
from tidemill.requests import ClientError, Request, encode, encode_command
from tidemill.sent import CommandWord, Sending
from tidemill.waiting import WaitTimeout

if TYPE_CHECKING:
    from tidemill.testing.engine import Engine


class EngineCore:
    """In place of a client's connections: each request is a record at once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.topics = engine.topics
        self.timeout_seconds = 1.0
        self.is_closed = False
        self.binding = weakref.ref(self)
        self._bridges = LoopBridges()

    @property
    def kafka(self) -> str:
        """There is none."""
        raise ClientError(
            "an Engine of tests answers no commands about schedules: see "
            "engine.announce_schedules() and engine.ticks()"
        )

    def enqueue(self, request: Request) -> Sending:
        job_id = self._engine.next_id() if request.job_id is None else request.job_id
        value = encode(request, job_id)
        return partial(self._send, request, value, job_id)

    def _send(self, request: Request, value: bytes, job_id: str, answer: Any) -> bool:
        topic, now_ms = self.topics.requested, self._engine.now_ms
        record = self._engine.append(topic, request.user_id, value)
        handle = JobHandle(
            job_id, request.user_id, request.type, topic, now_ms, 0, record.offset
        )
        answer.set_result(handle.bound(self.binding))
        return True

    def enqueue_many(self, requests: Iterable[Request]) -> list[JobHandle]:
        handles: list[JobHandle] = []
        engine, topic = self._engine, self.topics.requested
        for user_id, value in records_of(
            requests, handles, topic, engine.next_id, engine.now_ms, self.binding
        ):
            engine.append(topic, user_id, value)
        return handles

    def command(self, word: CommandWord, user_id: str, job_id: str, **said: Any) -> Sending:
        value = encode_command(word, user_id, job_id, self._engine.next_id(), said)

        def send(answer: Any) -> bool:
            record = self._engine.append(self.topics.commands, user_id, value)
            now_ms = self._engine.now_ms
            answer.set_result(
                CommandReceipt(word, user_id, job_id, 0, record.offset, now_ms)
            )
            return True

        return partial(send)

    def answer(self, receipt: CommandReceipt, timeout: float) -> Any:
        raise ClientError(
            "an Engine of tests answers no commands: look at the job's events after engine.run()"
        )

    def waiter(self, job: JobHandle, run: int) -> Waiter:
        waiter = Waiter((job.user_id, job.job_id), run, 0, 0)
        self._engine.await_end(waiter)
        return waiter

    def forget(self, waiter: Waiter) -> None:
        self._engine.forget(waiter)

    def ask_clickhouse(self, waiter: Waiter, seconds: float) -> None:
        """A wait begins: the clock moves until the end is there, or the time-out."""
        if not self._engine.wait_for(waiter, seconds):
            raise WaitTimeout(
                f"no end of job {waiter.key[1]} of {waiter.key[0]} came within {seconds:g} s of "
                "the engine's clock"
            )

    def promise(self) -> LoopPromise:
        return self._bridges.promise()

    def close(self, seconds: float | None = None) -> None:
        self.is_closed = True


class EngineClient(Client):
    """`tidemill.Client`, whose jobs run in an `Engine`."""

    def __init__(self, engine: Engine) -> None:
        self._core = EngineCore(engine)  # type: ignore[assignment]
        self.schedules = ClientSchedules(self._core)  # type: ignore[misc]
