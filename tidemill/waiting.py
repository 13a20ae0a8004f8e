"""Waiting for the end of one job, on a thread or on an event loop.

Owns the time-out of a wait and the turns between the topic and ClickHouse. Refuses to know how
either is read (`tidemill.completions`, `tidemill.looking_back`).
"""

from __future__ import annotations

import asyncio
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any, Final, Protocol

from tidemill.agents import clocks
from tidemill.completed import CompletedJob
from tidemill.requests import ClientError

if TYPE_CHECKING:
    from tidemill.bridge import LoopPromise
    from tidemill.completions import Waiter
    from tidemill.handles import JobHandle
    from tidemill.sent import CommandWord, Sending

WAIT_SECONDS: Final = 60.0  # seconds that a wait lasts unless told otherwise
ASK_CLICKHOUSE_SECONDS: Final = 2.0  # between two looks into ClickHouse for a job that had ended


class WaitTimeout(ClientError, TimeoutError):
    """No end came in time. The job goes on; waiting again is fine."""


class Connection(Protocol):
    """What a handle needs of its client."""

    @property
    def timeout_seconds(self) -> float: ...
    def command(self, word: CommandWord, user_id: str, job_id: str, **said: Any) -> Sending: ...
    def promise(self) -> LoopPromise: ...
    def waiter(self, job: JobHandle, run: int) -> Waiter: ...
    def forget(self, waiter: Waiter) -> None: ...
    def ask_clickhouse(self, waiter: Waiter, seconds: float) -> None: ...


def wait(connection: Connection, job: JobHandle, timeout: float, run: int) -> CompletedJob:
    """The job's end. Raises WaitTimeout after `timeout` seconds."""
    waiter = connection.waiter(job, run)
    deadline = clocks.monotonic() + timeout
    try:
        while True:
            left = deadline - clocks.monotonic()
            connection.ask_clickhouse(waiter, left)
            try:
                return waiter.future.result(max(0.0, min(left, ASK_CLICKHOUSE_SECONDS)))
            except FutureTimeout:
                if left <= ASK_CLICKHOUSE_SECONDS:
                    raise _timed_out(job, timeout) from None
    finally:
        connection.forget(waiter)


async def wait_async(
    connection: Connection, job: JobHandle, timeout: float, run: int
) -> CompletedJob:
    """The same on the running loop."""
    waiter = connection.waiter(job, run)
    end = asyncio.wrap_future(waiter.future)
    deadline = clocks.monotonic() + timeout
    try:
        while True:
            left = deadline - clocks.monotonic()
            connection.ask_clickhouse(waiter, left)
            done, _ = await asyncio.wait(
                [end], timeout=max(0.0, min(left, ASK_CLICKHOUSE_SECONDS))
            )
            if done:
                return end.result()
            if left <= ASK_CLICKHOUSE_SECONDS:
                raise _timed_out(job, timeout)
    finally:
        end.cancel()
        connection.forget(waiter)


def _timed_out(job: JobHandle, timeout: float) -> WaitTimeout:
    return WaitTimeout(
        f"no end of job {job.job_id} of {job.user_id} came within {timeout:g} s; it goes on, or "
        f"had ended before. Look: tidemill jobs show {job.job_id} --user {job.user_id}"
    )
