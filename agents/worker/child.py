"""The child process in which `process=True` handlers run, one job at a time.

Owns the child's life: load the modules, run what comes, report, and die with the parent. Refuses to
know Kafka, time-outs and retries: the parent kills a child that takes too long.

Started by `process_lane` with three words: the number of a socket to the parent, the parent's plan
of modules, format and level of the log. The child leads a process group of its own, so that killing
it takes its own children along.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import itertools
import logging
import os
import select
import signal
import socket
import sys
import threading
from concurrent.futures import Future
from typing import Any, Final, NoReturn

import orjson
from pydantic import ValidationError

from tidemill.agents import clocks
from tidemill.agents.logging import configure_logging
from tidemill.agents.worker import outcomes
from tidemill.agents.worker.context import Context, Signal
from tidemill.agents.worker.errors import TidemillError
from tidemill.agents.worker.failure_log import FAILURES
from tidemill.agents.worker.framing import frame, receive
from tidemill.agents.worker.handlers import REGISTRY, Handler
from tidemill.agents.worker.loading import load
from tidemill.agents.worker.module_names import LoadPlan
from tidemill.agents.worker.outcomes import Outcome
from tidemill.agents.worker.stacks import frames_of
from tidemill.agents.worker.surroundings import Surroundings
from tidemill.schemas.safe_text import safe_line

PROGRESS_INTERVAL_SECONDS: Final = 0.2  # the parent publishes at most two a second
AGAIN_SECONDS: Final = 0.01  # after a fork that hid the word to end
EXIT_TERMINATED: Final = 143  # 128 + SIGTERM, as shells say it
PR_SET_PDEATHSIG: Final = 1  # of Linux' prctl(2)

logger = logging.getLogger("tidemill.worker.child")


class ChildAttempt:
    """The attempt in the child: what a handler call needs."""

    def __init__(self, child: Child, job: dict[str, Any]) -> None:
        self._child = child
        self.job = job
        self.signal = Signal()
        self.context: Context | None = None
        #: What runs the handler: the main thread, or the coroutine that it drives.
        self.standing: object = threading.main_thread().ident
        self._progressed_at = 0.0
        self._words: dict[int, Future[None]] = {}  # that are not durable yet, by number
        self._numbers = itertools.count()

    def open_context(self) -> Context:
        self.context = Context(self.job, self.signal, self._on_progress, self._keep)
        return self.context

    def _keep(self, word: dict[str, Any]) -> Future[None]:
        number = next(self._numbers)
        done = self._words[number] = Future()
        self._child.send({"word": word, "number": number})
        return done

    def kept(self, number: int) -> None:
        """The parent says that a word is durable."""
        done = self._words.pop(number, None)
        if done is not None and not done.done():
            done.set_result(None)

    def _on_progress(self, told: dict[str, Any]) -> None:
        now = clocks.monotonic()
        if now - self._progressed_at >= PROGRESS_INTERVAL_SECONDS:
            self._progressed_at = now
            self._child.send({"progress": told})


class Child:
    """One connection to the parent. The main thread runs handlers, a second one listens."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._jobs: list[dict[str, Any]] = []
        self._arrived = threading.Semaphore(0)
        self._current: ChildAttempt | None = None
        self._sending = threading.Lock()  # a thread of the handler may tell progress meanwhile
        self._pid = os.getpid()
        self._surroundings = Surroundings(has_others=False)
        #: The parent has said that this process must end.
        self.is_ending = False
        self._own_signals()

    def send(self, message: dict[str, Any]) -> None:
        if os.getpid() != self._pid:
            # The handler forked, and its child came back out of it: it has no word here.
            os._exit(EXIT_TERMINATED)
        try:
            with self._sending:
                self._connection.sendall(frame(message))
        except OSError:
            _die()

    def serve(self) -> NoReturn:
        """Run jobs until the parent is gone."""
        self._surroundings = Surroundings(has_others=False)  # as the modules left them
        threading.Thread(target=self._listen, name="tidemill-parent", daemon=True).start()
        while True:
            self._arrived.acquire()
            self._run(self._jobs.pop(0))
            FAILURES.tell_rest()

    def _own_signals(self) -> None:
        """Modules and handlers set handlers of their own; the parent's word must be heard."""
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGINT, _ignore)

    def _on_terminate(self, number: int, frame_: object) -> None:
        """A signal wakes the handler from a sleep; one from elsewhere is the parent's to handle.

        Service managers send SIGTERM to every process of a worker, which then stops and lets this
        one finish. With "ignore" in place of a function, what the handler starts would inherit it.
        """
        if self.is_ending:
            raise _Terminated

    def _listen(self) -> NoReturn:
        try:
            self._hear()
        finally:  # the parent is gone, or nobody hears it any more
            _die()

    def _hear(self) -> None:
        arrived = select.poll()
        arrived.register(self._connection, select.POLLIN)
        while True:
            try:
                arrived.poll()
            except BaseException:  # noqa: BLE001, S112  # thrown at one that waits: nothing was read
                continue
            message = receive(self._connection)
            if message is None:
                return
            if "job" in message:
                self._jobs.append(message["job"])
                self._arrived.release()
            elif "stack" in message:
                self._tell_stack()
            elif "kept" in message:
                if self._current is not None:
                    self._current.kept(message["kept"])
            elif "terminate" in message:
                self.is_ending = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            elif self._current is not None:
                self._current.signal.is_set = True

    def _tell_stack(self) -> None:
        attempt = self._current
        if attempt is None:
            return
        frames = frames_of(attempt.standing, _call.__code__)
        self.send({"stack": FAILURES.stack_of(frames, attempt.job["type"])})

    def _run(self, job: dict[str, Any]) -> None:
        self._own_signals()
        attempt = ChildAttempt(self, job)
        self._current = attempt
        handler = REGISTRY.get(job["type"])
        if handler is None:
            # The child loaded the same modules; a module that registers by chance is at fault.
            end = outcomes.failure(
                "HANDLER_ERROR",
                f"the child process does not know the job type {job['type']!r}: define its handler "
                "at the top of its module, not under a condition",
                retryable=False,
            )
        else:
            end = _call(handler, attempt)
        self._current = None
        self._surroundings.look(lambda: f"by {safe_line(job['type'])}")
        saw_cancel = attempt.context is not None and attempt.context._saw_cancel
        self.send({"end": _portable(end, job), "saw_cancel": saw_cancel})


def _call(handler: Handler, attempt: ChildAttempt) -> Outcome:
    try:
        try:
            arguments = handler.arguments(attempt.job["payload"], attempt)
        except ValidationError as error:
            return outcomes.invalid_payload(handler, error)
        value = handler.function(*arguments)
        if inspect.iscoroutine(value):
            attempt.standing = value
            value = asyncio.run(value)
    except BaseException as error:  # noqa: BLE001  # SystemExit of a handler is a failed attempt
        if isinstance(error, _Terminated):
            logging.shutdown()
            os._exit(EXIT_TERMINATED)
        return outcomes.error(error, attempt.job, attempt.context)
    return outcomes.result(value, attempt.context, handler)


def _portable(end: Outcome, job: dict[str, Any]) -> Outcome:
    """The end as plain JSON; what is not JSON or too large becomes a failure here already."""
    encoded = orjson.loads(outcomes.encode(job, end, 0, 0))
    identity = ("user_id", "job_id", "run", "attempt", "epoch")
    return {key: value for key, value in encoded.items() if key not in identity}


class _Terminated(BaseException):
    """The parent's word to end: unwind the handler, so that its `finally` blocks run, and leave."""


def _watch_forks(connection: socket.socket) -> None:
    """In a copy that a handler forks the line is not its own, and SIGTERM ends it as usual."""
    masks = threading.local()

    def before() -> None:
        # A word to end that comes before the copy is ready for it would be lost.
        masks.former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def after() -> None:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, masks.former)
        except _Terminated:
            # Nothing passes out of a hook: the handler must meet it a little later.
            again = threading.Timer(
                AGAIN_SECONDS, signal.pthread_kill,
                (threading.main_thread().ident or 0, signal.SIGTERM),
            )
            again.daemon = True
            again.start()

    def after_in_copy() -> None:
        connection.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        after()

    os.register_at_fork(before=before, after_in_parent=after, after_in_child=after_in_copy)


def _ignore(number: int, frame_: object) -> None:
    """In place of SIG_IGN, which what the handler starts would inherit."""


def _die() -> NoReturn:
    """The parent is gone: nobody may go on working, our own children included."""
    os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(EXIT_TERMINATED)


def _die_with_parent() -> None:
    """On Linux the kernel ends us with the parent, even when C code holds the interpreter."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """Entry point: the socket's number, the plan of modules, and `FORMAT:LEVEL` of the log."""
    descriptor, plan, log = arguments
    connection = socket.socket(fileno=int(descriptor))
    # What a handler starts must not hold the line open: the parent learns of our end by it.
    connection.set_inheritable(False)
    connection.settimeout(None)
    _watch_forks(connection)
    _die_with_parent()
    FAILURES.tells_ends = False  # the parent does
    log_format, _, log_level = log.partition(":")
    configure_logging("worker", "json" if log_format == "json" else "console", log_level)
    clocks.keep()
    child = Child(connection)
    try:
        try:
            load(LoadPlan.from_json(plan))
        except TidemillError as error:
            child.send({"broken": str(error)})
            return 1
        child.send({"ready": True})
        child.serve()
    except _Terminated:
        return EXIT_TERMINATED
