"""What the three kinds of slots have in common, and the slots for `def` handlers: threads.

Owns the waiting line of one kind and its threads. Refuses to know time-outs and outcomes: the
executor tells when an attempt must end and learns how it ended.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import queue
from collections import deque
from threading import Thread, get_ident
from typing import Final, Protocol

from pydantic import ValidationError

from tidemill.agents import clocks
from tidemill.agents.worker import outcomes
from tidemill.agents.worker.attempts import Attempt
from tidemill.agents.worker.copies import leave_if_copy
from tidemill.agents.worker.failure_log import FAILURES
from tidemill.agents.worker.outcomes import Outcome
from tidemill.agents.worker.stacks import frames_of

STACK_NAME: Final = "tidemill-job"  # threads' names, for people who look at a stack dump


class Host(Protocol):
    """What a lane asks of the executor."""

    def begun(self, attempt: Attempt) -> bool:
        """The attempt left the waiting line, and its handler is called next. False: it must not
        begin any more, and is dealt with."""

    def ended(self, attempt: Attempt, end: Outcome) -> None:
        """The attempt ended by itself; called on the loop, once for each attempt that began."""


class Lane(Protocol):
    """Slots of one kind."""

    #: Attempts that arrived and have not begun: those that were sent before, then oldest first.
    waiting: deque[Attempt]
    #: Attempts that go on after the pass of the loop in which they began.
    running: set[Attempt]
    #: Slots that an attempt still holds which was given up on.
    stuck: int
    capacity: int

    @property
    def free(self) -> int: ...

    @property
    def coming(self) -> int:
        """Slots that will be free in a moment: who waits for one need not go elsewhere."""

    def kick(self) -> None:
        """Something arrived in the waiting line, or a slot came free."""

    def note_stack(self, attempt: Attempt) -> None:
        """Keep where the handler of a running attempt stands, `Attempt.stack`, as far as can be
        seen; of another process it comes a little later, or not at all."""

    def force(self, attempt: Attempt) -> bool:
        """Make a running attempt end; False when this kind cannot, so that it is given up on."""

    def give_up(self, attempt: Attempt) -> None:
        """Go on without a running attempt that does not end; its slot stays taken."""

    async def close(self) -> None:
        """End what can be ended; nothing is started any more."""


class ThreadLane:
    """`def` handlers, each on a thread of a pool of its own.

    The pool is not `ThreadPoolExecutor`: that one waits for its threads when the process ends, and
    a handler that hangs must not keep a worker alive.
    """

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop, capacity: int) -> None:
        self._host = host
        self._loop = loop
        self.capacity = capacity
        self.waiting: deque[Attempt] = deque()
        self.running: set[Attempt] = set()
        self.stuck = 0
        self._calls: deque[Attempt | None] = deque()
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()  # as many as calls
        self._done: deque[tuple[Attempt, Outcome]] = deque()
        self._is_told = False
        self._threads = 0

    @property
    def free(self) -> int:
        return self.capacity - len(self.running) - self.stuck

    @property
    def coming(self) -> int:
        return 0

    def kick(self) -> None:
        while self.waiting and self.free > 0:
            attempt = self.waiting.popleft()
            if not self._host.begun(attempt):
                continue
            now = clocks.wall()
            attempt.started_ms = int(now * 1000)
            attempt.suspend(self, clocks.monotonic())
            self.running.add(attempt)
            if self._threads < len(self.running) + self.stuck:
                self._start_thread()
            self._call(attempt)

    def note_stack(self, attempt: Attempt) -> None:
        frames = frames_of(attempt.standing, run_blocking.__code__)
        attempt.stack = FAILURES.stack_of(frames, attempt.job["type"])

    def force(self, attempt: Attempt) -> bool:
        return False

    def give_up(self, attempt: Attempt) -> None:
        self.running.discard(attempt)
        self.stuck += 1

    async def close(self) -> None:
        for _ in range(self._threads):
            self._call(None)

    def _call(self, attempt: Attempt | None) -> None:
        self._calls.append(attempt)
        self._tokens.put(None)

    def _start_thread(self) -> None:
        self._threads += 1
        name = f"{STACK_NAME}-{self._threads}"
        Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                self._tokens.get()
            except BaseException:  # noqa: BLE001, S110
                # Thrown at a thread that waits, by a tool that a handler has used. It is met when
                # a token comes, which is lost with it.
                pass
            try:
                attempt = self._calls.popleft()
            except IndexError:
                continue  # its call went to a thread whose token was lost
            if attempt is None:
                return
            try:
                attempt.standing = get_ident()
                end = contextvars.Context().run(run_blocking, attempt)
            except BaseException as error:  # noqa: BLE001  # thrown after the handler's own end
                end = outcomes.error(error, attempt.job, attempt.context)
            attempt.standing = None
            self._done.append((attempt, end))
            # One wake-up of the loop serves all that ended until it runs.
            if not self._is_told:
                self._is_told = True
                try:
                    self._loop.call_soon_threadsafe(self._collect)
                except RuntimeError:
                    return  # the loop is closed: this thread was given up on, nobody listens

    def _collect(self) -> None:
        self._is_told = False
        while self._done:
            attempt, end = self._done.popleft()
            if attempt.is_ended:
                self.stuck -= 1
            else:
                self.running.discard(attempt)
                self._host.ended(attempt, end)
        self.kick()


def run_blocking(attempt: Attempt) -> Outcome:
    """Call a `def` handler and return its end, whatever it does."""
    handler = attempt.handler
    assert handler is not None  # a lane only receives attempts with a handler
    try:
        try:
            arguments = handler.arguments(attempt.job["payload"], attempt)
        except ValidationError as error:
            return outcomes.invalid_payload(handler, error)
        value = handler.function(*arguments)
        if inspect.iscoroutine(value):
            # A decorator that is no `async def` around one that is.
            attempt.standing = value
            value = asyncio.run(value)
    except BaseException as error:  # noqa: BLE001  # SystemExit too must not end the thread
        leave_if_copy(error)
        return outcomes.error(error, attempt.job, attempt.context)
    leave_if_copy()
    return outcomes.result(value, attempt.context, handler)


def line_up(waiting: deque[Attempt], attempt: Attempt) -> None:
    """The line is in the order of arrival, but who was sent before goes first: a job that was
    rescued or handed back has waited already, and might else be handed back again and again."""
    if attempt.job["epoch"] == 1 or not waiting or waiting[-1].job["epoch"] > 1:
        waiting.append(attempt)
    else:
        place = next(at for at, other in enumerate(waiting) if other.job["epoch"] == 1)
        waiting.insert(place, attempt)
