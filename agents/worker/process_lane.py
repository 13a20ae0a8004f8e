"""Slots for `process=True` handlers: child processes that can truly be ended.

Owns the children: start, replace, end. Refuses to know time-outs and outcomes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from _socket import socket as RawSocket
from _socket import socketpair
from collections import deque
from fcntl import F_DUPFD_CLOEXEC, fcntl
from socket import socket as Socket
from subprocess import DEVNULL, Popen
from typing import Any, Final

import orjson

from tidemill.agents import clocks, own_streams
from tidemill.agents.logging import log_words
from tidemill.agents.supervisor import describe_exit
from tidemill.agents.worker import outcomes
from tidemill.agents.worker.attempts import Attempt
from tidemill.agents.worker.framing import LENGTH_BYTES, frame
from tidemill.agents.worker.graces import NO_GRACES, Graces
from tidemill.agents.worker.lanes import Host
from tidemill.agents.worker.module_names import LoadPlan, plan_modules

TERM_GRACE_SECONDS: Final = 2.0  # from the word to end to SIGKILL: time for a handler's `finally`
READY_LOOK_SECONDS: Final = 1.0  # between two looks whether a child that starts is ready
RESTART_SECONDS: Final = (0.0, 1.0, 5.0, 30.0)  # waits before a child that never got ready is tried
SELF_END_SECONDS: Final = 0.2  # a child that closed its socket is ending; its code comes then
REAP_SECONDS_MAX: Final = 5.0  # after SIGKILL a process is gone within moments
REAP_LOOK_SECONDS: Final = 0.005  # between two looks whether it is
# The path comes first: it is where the worker itself was found. Nothing is imported for `-c`, so a
# process that `multiprocessing` spawns in the child imports no main module.
CHILD_CODE: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2])['search']; "
    "from tidemill.agents.worker.child import main; sys.exit(main(sys.argv[1:]))"
)
# As they are before any handler ran: one may put others into their modules.
EXECUTABLE: Final = sys.executable
INTERPRETER_FLAGS: Final = tuple(
    subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
)
KILLED_BY_KERNEL: Final = "killed by SIGKILL"

logger = logging.getLogger("tidemill.worker")


class ChildGone(Exception):
    """The child's end of the socket closed."""


class ChildProcess:
    """One running child and its socket."""

    def __init__(
        self,
        process: Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self._reader = reader
        self._writer = writer
        self._killer: asyncio.TimerHandle | None = None

    def send(self, message: dict[str, Any]) -> None:
        if not self._writer.is_closing():  # it is being reaped
            self._writer.write(frame(message))

    async def receive(self) -> dict[str, Any]:
        try:
            length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "big")
            message: dict[str, Any] = orjson.loads(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise ChildGone from error
        return message

    def ask_stack(self) -> None:
        """Ask where the handler stands; a child whose interpreter is held cannot say."""
        self.send({"stack": True})

    def terminate(self) -> None:
        """Tell the child to unwind and end, SIGKILL to its whole group after the grace."""
        if self._killer is not None:
            return
        self.send({"terminate": True})
        self._killer = asyncio.get_running_loop().call_later(TERM_GRACE_SECONDS, self.kill)

    def kill(self) -> None:
        """End the child and everything that it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # gone already; macOS says "not permitted" of a group of zombies

    def hang_up(self) -> None:
        """Close our end of the socket, by which the child learns that nobody listens."""
        self._writer.close()

    async def reap(self) -> str:
        """Kill what is left, wait for the child, and say how it ended."""
        self.hang_up()
        if self._killer is None:
            await self._wait(SELF_END_SECONDS)  # it is ending by itself: learn its own exit code
        else:
            self._killer.cancel()
        self.kill()
        code = await self._wait(REAP_SECONDS_MAX)
        if code is None:
            return "it does not end, even after SIGKILL"
        if code < 0:
            return f"killed {describe_exit(code)}"
        return f"exit code {code}"

    async def _wait(self, seconds: float) -> int | None:
        """The exit code; None when it has not ended after `seconds`."""
        deadline = clocks.monotonic() + seconds
        # `Popen.wait` looks again and again as well, and would hold a thread meanwhile.
        while (code := self.process.poll()) is None and clocks.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(REAP_LOOK_SECONDS)
        return code


def _pair() -> tuple[Socket, int]:
    """Our end of a line, and the descriptor of the child's, which no handler knows as a socket.

    `socket.socketpair` makes its ends of whatever class stands in the module now, and they come
    under the first free numbers: where a handler has closed stdout, what anybody prints would go
    into the line.
    """
    ours, theirs = socketpair()
    # A user's `socket.setdefaulttimeout` would make the child's end one that does not wait.
    theirs.setblocking(True)
    high, number = _above_streams(ours), _above_streams(theirs)
    return Socket(ours.family, ours.type, ours.proto, high), number


def _above_streams(end: RawSocket) -> int:
    number = end.detach()
    if number > own_streams.STDERR:
        return number
    try:
        return fcntl(number, F_DUPFD_CLOEXEC, own_streams.STDERR + 1)
    finally:
        os.close(number)


def _spawn(modules: LoadPlan) -> tuple[Popen[bytes], Socket]:
    """Start a child with what the worker itself was started with, not with what it is now.

    A handler may have changed the folder, the path or the environment of the worker meanwhile.
    """
    ours, theirs = _pair()
    try:
        # On the loop's own thread: the child dies with the thread that started it.
        process = Popen(
            [
                # The interpreter's own options, -O and -W: as `multiprocessing` does it.
                EXECUTABLE, *INTERPRETER_FLAGS,
                "-P", "-c", CHILD_CODE, str(theirs), modules.to_json(), log_words(),
            ],
            pass_fds=[theirs],
            stdin=DEVNULL,
            cwd=modules.folder,
            # A group of its own: what the handler starts is killed with it, and Ctrl-C spares it.
            start_new_session=True,
            env=modules.environment,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        os.close(theirs)
    return process, ours


async def start_child(modules: LoadPlan) -> ChildProcess:
    """Start a child that loads `modules`; it is not ready yet."""
    process, ours = _spawn(modules)
    try:
        reader, writer = await asyncio.open_unix_connection(sock=ours)
    except BaseException:  # cancelled: nobody knows of the child yet
        ours.close()
        process.kill()
        process.wait(REAP_SECONDS_MAX)
        raise
    return ChildProcess(process, reader, writer)


class ProcessLane:
    """`process=True` handlers, one child process a slot."""

    def __init__(
        self,
        host: Host,
        loop: asyncio.AbstractEventLoop,
        capacity: int,
        modules: LoadPlan | None,
        graces: Graces = NO_GRACES,
    ) -> None:
        self._host = host
        self._loop = loop
        self.capacity = capacity
        self._modules = modules or plan_modules(())
        self._graces = graces
        self.waiting: deque[Attempt] = deque()
        self.running: set[Attempt] = set()
        self.stuck = 0
        self._idle: deque[asyncio.Future[None]] = deque()
        self._closing = asyncio.Event()
        self._children: set[ChildProcess] = set()
        self._starting = 0
        self._keepers = [loop.create_task(self._keep()) for _ in range(capacity)]

    @property
    def free(self) -> int:
        """Children that are ready and have nothing to do."""
        return len(self._idle)

    @property
    def coming(self) -> int:
        """Children that start, as long as nothing is wrong with them."""
        return self._starting

    @property
    def pids(self) -> list[int]:
        """The children that live now."""
        return [child.process.pid for child in self._children]

    def kick(self) -> None:
        for _ in range(min(len(self.waiting), len(self._idle))):
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def note_stack(self, attempt: Attempt) -> None:
        child: ChildProcess = attempt.runner
        child.ask_stack()  # the answer comes before the end

    def force(self, attempt: Attempt) -> bool:
        child: ChildProcess = attempt.runner
        child.terminate()
        return True

    def tell_cancel(self, attempt: Attempt) -> None:
        """Pass the word to stop on to the handler's context."""
        child: ChildProcess = attempt.runner
        child.send({"cancel": True})

    def give_up(self, attempt: Attempt) -> None:
        """Only a process that the kernel cannot end comes here (stuck in a device, say)."""
        self.running.discard(attempt)
        self.stuck += 1

    async def close(self) -> None:
        self._closing.set()
        for keeper in self._keepers:
            keeper.cancel()
        for child in list(self._children):
            child.kill()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.sleep(0)  # in which the sockets are closed

    async def _keep(self) -> None:
        """Keep one slot alive: a child, and another when it has ended."""
        failures = 0
        while not self._closing.is_set():
            await asyncio.sleep(RESTART_SECONDS[min(failures, len(RESTART_SECONDS) - 1)])
            try:
                child = await start_child(self._modules)
            except Exception as error:  # noqa: BLE001
                # No process, no memory, no file left, or a handler broke what we use: perhaps later
                # it works again. The slot must not be lost with it.
                logger.error("a child process cannot be started, trying again: %r", error)
                failures += 1
                continue
            self._children.add(child)
            try:
                if await self._await_ready(child, is_expected=not failures):
                    failures = 0
                    await self._serve(child)
                else:
                    failures += 1
            except Exception:
                # Whatever it was, the slot must not be lost with it.
                logger.exception("a child process is given up, another one is started")
                failures += 1
                self._end_running_in(child)
            finally:
                child.kill()
                child.hang_up()
                self._children.discard(child)
                if self._closing.is_set():
                    child.process.wait(REAP_SECONDS_MAX)

    def _end_running_in(self, child: ChildProcess) -> None:
        for attempt in [each for each in self.running if each.runner is child]:
            self._end(attempt, self.died(attempt, "the worker lost its connection to it"))

    def died(self, attempt: Attempt, how: str) -> outcomes.Outcome:
        """How an attempt ends whose process ended by itself."""
        return outcomes.died(how)

    async def _await_ready(self, child: ChildProcess, *, is_expected: bool) -> bool:
        self._starting += is_expected
        try:
            message = await self._first_word(child)
        except (ChildGone, TimeoutError) as error:
            how = await child.reap()
            if isinstance(error, TimeoutError):
                how += f", after {error}"
            logger.error("a child process for process=True handlers did not get ready: %s", how)
            return False
        finally:
            self._starting -= is_expected
        if "broken" in message:
            await child.reap()
            logger.error("a child process cannot load the modules: %s", message["broken"])
            return False
        return True

    async def _first_word(self, child: ChildProcess) -> dict[str, Any]:
        """What a child says once it has loaded the modules. Only time counts in which this loop
        turned: the word may have come while it stood still."""
        listening = self._loop.create_task(child.receive())
        left = self._graces.child_start
        try:
            while not listening.done() and left > 0:
                await asyncio.wait({listening}, timeout=min(left, READY_LOOK_SECONDS))
                left -= READY_LOOK_SECONDS
            if listening.done():
                return listening.result()
        finally:
            listening.cancel()
        raise TimeoutError(
            f"loading the modules for {self._graces.child_start:g} s "
            "(TIDEMILL_CHILD_START_SECONDS)"
        )

    async def _serve(self, child: ChildProcess) -> None:
        while True:
            if not self.waiting:
                waiter = self._loop.create_future()
                self._idle.append(waiter)
                if await self._is_lost_while_idle(child, waiter):
                    return
                continue
            attempt = self.waiting.popleft()
            if not self._host.begun(attempt):
                continue
            attempt.started_ms = clocks.wall_ms()
            attempt.suspend(child, clocks.monotonic())
            self.running.add(attempt)
            child.send({"job": attempt.job})
            is_alive = await self._await_end(child, attempt)
            if not is_alive:
                return

    async def _is_lost_while_idle(
        self, child: ChildProcess, waiter: asyncio.Future[None]
    ) -> bool:
        """Wait for work; True when the child died meanwhile (somebody killed it)."""
        listening = self._loop.create_task(child.receive())
        try:
            both: set[asyncio.Future[Any]] = {listening, waiter}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_lost = listening.done()
            listening.cancel()
            if waiter in self._idle:
                self._idle.remove(waiter)
        if is_lost:
            how = await child.reap()
            logger.warning("an idle child process ended: %s; another one is started", how)
        await asyncio.gather(listening, return_exceptions=True)
        return is_lost

    async def _await_end(self, child: ChildProcess, attempt: Attempt) -> bool:
        """Follow one attempt to its end; False when the child is gone."""
        try:
            while "end" not in (message := await child.receive()):
                if "stack" in message:
                    attempt.stack = message["stack"]
                elif "word" in message:
                    self._keep_word(child, attempt, message["word"], message["number"])
                else:
                    attempt.set_progress(message["progress"])
        except ChildGone:
            how = await child.reap()
            if how == KILLED_BY_KERNEL and attempt.verdict is None:
                how += " (out of memory?)"
            self._end(attempt, self.died(attempt, how))
            return False
        attempt.has_seen_cancel = message["saw_cancel"]
        self._end(attempt, message["end"])
        # A child that was told to end may still be unwinding: never reuse it.
        if attempt.verdict is not None:
            await child.reap()
            return False
        return True

    def _keep_word(
        self, child: ChildProcess, attempt: Attempt, word: outcomes.Outcome, number: int
    ) -> None:
        """Tell what the handler says, and the child once it is durable."""
        keeper = attempt.pack.keeper
        if keeper is not None:
            kept = keeper.keep(attempt, word)
            kept.add_done_callback(lambda done: child.send({"kept": number}))

    def _end(self, attempt: Attempt, end: outcomes.Outcome) -> None:
        if attempt.is_ended:
            self.stuck -= 1
        else:
            self.running.discard(attempt)
            self._host.ended(attempt, end)
