"""Slots for `async def` handlers: long-lived tasks that run one job after another.

Owns the running of coroutines. Refuses to know time-outs and outcomes.

A job costs no task and no timer of its own: a slot's task sends the first `None` into the coroutine
itself, and a handler that ends without ever waiting is done there and then. When it waits, the slot
waits with it and the next idle slot takes over the line. Each job has its own copy of the context
variables, and `asyncio.current_task()` is the slot's task, so that `asyncio.timeout` and
`TaskGroup` work in a handler as everywhere.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Coroutine, Generator
from typing import Any, Final

from pydantic import ValidationError

from tidemill.agents import clocks
from tidemill.agents.worker import outcomes
from tidemill.agents.worker.attempts import Attempt
from tidemill.agents.worker.copies import leave_if_copy
from tidemill.agents.worker.failure_log import FAILURES
from tidemill.agents.worker.lanes import Host
from tidemill.agents.worker.outcomes import Outcome
from tidemill.agents.worker.stacks import frames_of

TURN_SECONDS: Final = 0.002  # jobs run back to back for this long; then the loop gets on

logger = logging.getLogger("tidemill.worker")


class _Rest:
    """The rest of a coroutine that has begun, in its own context; awaited by the slot's task."""

    __slots__ = ("_context", "_yielded", "coroutine")

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context, yielded: Any
    ) -> None:
        self.coroutine = coroutine
        self._context = context
        self._yielded = yielded

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine, run = self.coroutine, self._context.run
        yielded = self._yielded
        while True:
            try:
                sent = yield yielded
            except GeneratorExit:
                run(coroutine.close)
                raise
            except BaseException as error:  # noqa: BLE001  # thrown on into the handler
                try:
                    yielded = run(coroutine.throw, error)
                except StopIteration as stop:
                    leave_if_copy()
                    return stop.value
            else:
                try:
                    yielded = run(coroutine.send, sent)
                except StopIteration as stop:
                    leave_if_copy()
                    return stop.value
            leave_if_copy()


class _Slot:
    """One long-lived task. Retired when a cancel may still be pending in it."""

    __slots__ = ("is_retired", "task", "wakeup")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.wakeup: asyncio.Future[None] | None = None
        self.is_retired = False


class AsyncLane:
    """`async def` handlers on the loop."""

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop, capacity: int) -> None:
        self._host = host
        self._loop = loop
        self.capacity = capacity
        self.waiting: deque[Attempt] = deque()
        self.running: set[Attempt] = set()
        self.stuck = 0
        self._slots: set[_Slot] = set()
        self._idle: list[_Slot] = []
        # Slots that are awake and will look at the line before they sleep or wait with a job.
        self._awake = 0
        self._context = contextvars.copy_context()
        self._is_closed = False

    @property
    def free(self) -> int:
        return self.capacity - len(self.running) - self.stuck

    @property
    def coming(self) -> int:
        return 0

    def kick(self) -> None:
        # One awake slot is enough: it wakes the next one when its job has to wait.
        if self.waiting and not self._awake:
            self._wake_one()

    def note_stack(self, attempt: Attempt) -> None:
        frames = frames_of(attempt.standing, _Rest.__await__.__code__)
        attempt.stack = FAILURES.stack_of(frames, attempt.job["type"])

    def force(self, attempt: Attempt) -> bool:
        slot: _Slot = attempt.runner
        slot.is_retired = True
        if slot.task is not None:
            slot.task.cancel()
        return True

    def give_up(self, attempt: Attempt) -> None:
        self.running.discard(attempt)
        self.stuck += 1
        logger.error(
            "job %s (%s) of user %s does not end although it was cancelled; its slot is lost until "
            "it does: let CancelledError pass in the handler",
            attempt.job["job_id"], attempt.job["type"], attempt.job["user_id"],
        )

    async def close(self) -> None:
        self._is_closed = True
        tasks = [slot.task for slot in self._slots if slot.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            # A handler that swallows its cancel is left behind; the process is about to end.
            await asyncio.wait(tasks, timeout=TURN_SECONDS)

    def _wake_one(self) -> None:
        if self._idle:
            slot = self._idle.pop()
            self._awake += 1
            if slot.wakeup is not None:
                slot.wakeup.set_result(None)
        elif len(self._slots) < self.capacity and not self._is_closed:
            slot = _Slot()
            self._slots.add(slot)
            self._awake += 1
            slot.task = self._loop.create_task(self._serve(slot), name="tidemill-slot")

    async def _serve(self, slot: _Slot) -> None:
        try:
            await self._serve_line(slot)
        except asyncio.CancelledError:
            # The lane is closed, or a handler left a cancel of its own behind in our task.
            if slot in self._idle:
                self._idle.remove(slot)
                self._awake += 1
        finally:
            self._slots.discard(slot)
            self._awake -= 1
            if not self._is_closed:
                self.kick()

    async def _serve_line(self, slot: _Slot) -> None:
        waiting = self.waiting
        turn_ends_at = clocks.monotonic() + TURN_SECONDS
        while not slot.is_retired:
            if not waiting:
                await self._sleep(slot)
                turn_ends_at = clocks.monotonic() + TURN_SECONDS
                continue
            attempt = waiting.popleft()
            rest = self._begin(attempt)
            if rest is not None:
                await self._wait_with(attempt, rest, slot)
                turn_ends_at = clocks.monotonic() + TURN_SECONDS
            elif slot.task is not None and slot.task.cancelling():
                return  # the handler cancelled its task and ended: the next one must not bear it
            elif clocks.monotonic() > turn_ends_at:
                await asyncio.sleep(0)
                turn_ends_at = clocks.monotonic() + TURN_SECONDS

    async def _sleep(self, slot: _Slot) -> None:
        slot.wakeup = self._loop.create_future()
        self._idle.append(slot)
        self._awake -= 1
        await slot.wakeup

    def _begin(self, attempt: Attempt) -> _Rest | None:
        """Run the handler up to its first wait; None when it is over by then."""
        host, handler, job = self._host, attempt.handler, attempt.job
        assert handler is not None  # a lane only receives attempts with a handler
        if not host.begun(attempt):
            return None
        attempt.started_ms = int(clocks.wall() * 1000)
        try:
            arguments = handler.arguments(job["payload"], attempt)
        except ValidationError as error:
            host.ended(attempt, outcomes.invalid_payload(handler, error))
            return None
        except BaseException as error:  # noqa: BLE001  # a validator may do anything, `next()` too
            host.ended(attempt, outcomes.error(error, job, attempt.context))
            return None
        context = self._context.copy()
        try:
            coroutine = handler.function(*arguments)
            yielded = context.run(coroutine.send, None)
        except StopIteration as stop:
            leave_if_copy()
            host.ended(attempt, outcomes.result(stop.value, attempt.context, handler))
        except BaseException as error:  # noqa: BLE001  # SystemExit too must not end the worker
            leave_if_copy(error)
            host.ended(attempt, outcomes.error(error, job, attempt.context))
        else:
            leave_if_copy()
            return _Rest(coroutine, context, yielded)
        return None

    async def _wait_with(self, attempt: Attempt, rest: _Rest, slot: _Slot) -> None:
        attempt.suspend(slot, clocks.monotonic())
        attempt.standing = rest.coroutine
        self.running.add(attempt)
        self._awake -= 1
        if self.waiting and not self._awake:
            self._wake_one()
        end: Outcome
        try:
            end = outcomes.result(await rest, attempt.context, attempt.handler)
        except asyncio.CancelledError as error:
            is_ours = attempt.verdict is not None or attempt.is_ended or self._is_closed
            if is_ours:
                end = outcomes.cancelled()
            else:
                end = outcomes.error(error, attempt.job, attempt.context)
        except BaseException as error:  # noqa: BLE001  # SystemExit too must not end the worker
            leave_if_copy(error)
            end = outcomes.error(error, attempt.job, attempt.context)
        finally:
            self._awake += 1
        if slot.task is not None and slot.task.cancelling():
            slot.is_retired = True
        if attempt.is_ended:
            self.stuck -= 1
        else:
            self.running.discard(attempt)
            self._host.ended(attempt, end)
