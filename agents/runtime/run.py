"""Running an app in this process: signals, graceful stop, watchdog.

Owns the life of the process; refuses to know what the app does.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from tidemill.agents import clocks
from tidemill.agents.runtime.app import RoleApp
from tidemill.agents.runtime.clients import throttle_aiokafka
from tidemill.agents.runtime.failstop import fail_stop
from tidemill.agents.settings import STALL_SECONDS

logger = logging.getLogger("tidemill.runtime")

# A graceful stop that takes longer is cut: `tidemill dev` promises 10 s for all roles together.
STOP_SECONDS_MAX = 8.0
TURN_SECONDS = 0.2  # between two turns of the loop during a stop
HELD_SECONDS = 1.0  # without a turn: somebody holds the loop
# How often the watchdog looks.
WATCH_INTERVAL_SECONDS = 1.0
STILL_TOLD_SECONDS = 10.0  # the log tells of a loop that stands still; again after twice as long
FRAMES_MAX = 10  # of where it stands, the innermost ones

EXIT_OK = 0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WatchdogLimits:
    """How long each thing may stand still before the process ends, in seconds."""

    #: From the start to the first assignment that is restored; a broker may be starting as well.
    first_start_seconds: float = 600.0
    #: From a rebalance's begin to records flowing again, restore included.
    rebalance_seconds: float = 600.0
    #: Acked offsets that no commit takes; a broker outage is shorter.
    commit_seconds: float = 300.0
    #: The loop itself, in one step: TIDEMILL_STALL_SECONDS. Asked again and again.
    loop_seconds: Callable[[], float] = lambda: STALL_SECONDS
    #: Whose code it may be, for the log: "" or a clause that begins with "; ".
    blame: Callable[[], str] = lambda: ""


class LoopWatch:
    """Ends the process when its loop stands still for too long, from a thread of its own.

    Only time counts in which this thread ran: a process that was stopped, suspended, or whose
    interpreter was held has not stood still for that.
    """

    def __init__(self, limits: WatchdogLimits) -> None:
        self._limits = limits
        self._loop_thread = threading.get_ident()
        self._turns = 0
        self._is_closing = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="tidemill-loop-watch", daemon=True).start()

    def turn(self) -> None:
        """The loop turns."""
        self._turns += 1

    def close(self) -> None:
        self._is_closing.set()

    def _run(self) -> None:
        still, turns, told_at = 0.0, -1, STILL_TOLD_SECONDS
        while not self._is_closing.wait(WATCH_INTERVAL_SECONDS):
            if self._turns != turns:
                still, turns, told_at = 0.0, self._turns, STILL_TOLD_SECONDS
                continue
            still += WATCH_INTERVAL_SECONDS
            limit = self._limits.loop_seconds()
            if still > limit:
                fail_stop(
                    f"the event loop stood still for {still:.0f} s, longer than "
                    f"TIDEMILL_STALL_SECONDS allows{self._limits.blame()}; it stands at "
                    f"{self._where()}"
                )
            if still >= told_at:
                told_at = 2 * still
                logger.warning(
                    "the event loop has stood still for %.0f s, the process ends after %.0f%s; it "
                    "stands at %s", still, limit, self._limits.blame(), self._where(),
                )

    def _where(self) -> str:
        frame = sys._current_frames().get(self._loop_thread)
        if frame is None:
            return "nobody knows"
        inner = traceback.StackSummary.extract(traceback.walk_stack(frame), limit=FRAMES_MAX)
        # Innermost first, as `walk_stack` goes, in one line of a log.
        return " < ".join(f"{one.filename}:{one.lineno} {one.name}" for one in inner)


class Watchdog:
    """Ends the process when nothing moves that should. Only time counts in which it ran itself."""

    def __init__(self, app: RoleApp, limits: WatchdogLimits) -> None:
        self._app = app
        self._limits = limits
        self._still = 0.0  # seconds without records that flow
        self._has_flowed = False
        self._uncommitted_since: float | None = None
        self._uncommitted = 0.0

    async def watch(self) -> None:
        loop_watch = LoopWatch(self._limits)
        loop_watch.start()
        try:
            while True:
                before = clocks.monotonic()
                await asyncio.sleep(WATCH_INTERVAL_SECONDS)
                loop_watch.turn()
                passed = min(clocks.monotonic() - before, 2 * WATCH_INTERVAL_SECONDS)
                self._check_tasks()
                self._check_rebalance(passed)
                self._check_commit(passed)
        finally:
            loop_watch.close()

    def _check_tasks(self) -> None:
        kafka = self._app.chunks._kafka
        if kafka is None:
            return
        fetcher, coordinator = kafka._fetcher, kafka._coordinator
        if fetcher is not None and fetcher._fetch_task.done():
            fail_stop("the fetcher of the Kafka consumer has ended")
        if coordinator is not None and coordinator._coordination_task.done():
            fail_stop("the group membership of the Kafka consumer has ended")

    def _check_rebalance(self, passed: float) -> None:
        app = self._app
        if app.is_flowing:
            self._still, self._has_flowed = 0.0, True
            app.chunks.wake()
            return
        self._still += passed
        limits = self._limits
        allowed = limits.rebalance_seconds if self._has_flowed else limits.first_start_seconds
        if self._still > allowed:
            fail_stop(f"no records flow {allowed:.0f} s after a rebalance or start began")

    def _check_commit(self, passed: float) -> None:
        since = self._app.chunks.uncommitted_since
        if since is None or since != self._uncommitted_since:
            self._uncommitted_since, self._uncommitted = since, 0.0
            return
        self._uncommitted += passed
        if self._uncommitted > self._limits.commit_seconds:
            fail_stop(f"acked offsets were not committed for {self._limits.commit_seconds:.0f} s")


class StopBound:
    """Ends the process when its graceful stop takes longer than `seconds`.

    The kernel's clock counts, since the loop may stand still. But while code of a handler holds the
    loop or the interpreter, nobody can stop anything: what it holds up is waited for, as long as a
    standstill may last, and then our own steps get their time once more.
    """

    def __init__(self, seconds: float, limits: WatchdogLimits) -> None:
        self._limits = limits
        self._turned_at = clocks.monotonic()
        self._waited = 0.0  # for standstills, in all
        self._is_held = False
        signal.signal(signal.SIGALRM, self._on_overdue)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    async def watch(self) -> None:
        """The loop turns."""
        while True:
            self._turned_at = clocks.monotonic()
            await asyncio.sleep(TURN_SECONDS)

    def close(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _on_overdue(self, number: int, frame: object) -> None:
        is_held = clocks.monotonic() - self._turned_at > HELD_SECONDS
        if (is_held or self._is_held) and self._waited < self._limits.loop_seconds():
            if is_held and not self._is_held:
                logger.warning(
                    "the graceful stop waits: code of a handler holds this process%s",
                    self._limits.blame(),
                )
            self._is_held = is_held
            more = WATCH_INTERVAL_SECONDS if is_held else STOP_SECONDS_MAX
            self._waited += more
            signal.setitimer(signal.ITIMER_REAL, more)
            return
        fail_stop(
            "the graceful stop took longer than the stop's grace and what our own steps may take; "
            "what was in flight will be done again"
        )


async def _keep_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """The signals that end us stay ours: a handler of jobs may set its own for them by accident."""
    own: dict[signal.Signals, Any] = {}
    while True:
        for number in (signal.SIGTERM, signal.SIGINT):
            if number not in own or signal.getsignal(number) is not own[number]:
                if number in own:
                    logger.warning("%s was taken by other code; it ends this process as before",
                                   number.name)
                loop.add_signal_handler(number, stop.set)
                own[number] = signal.getsignal(number)
        await asyncio.sleep(WATCH_INTERVAL_SECONDS)


async def serve(
    app: RoleApp,
    *,
    stop_seconds_max: float = STOP_SECONDS_MAX,
    limits: WatchdogLimits | None = None,
) -> int:
    """Run ``app`` until SIGTERM or SIGINT; return the exit code."""
    throttle_aiokafka()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    keeping = asyncio.create_task(_keep_signals(loop, stop))
    watching = asyncio.create_task(Watchdog(app, limits or WatchdogLimits()).watch())
    watching.add_done_callback(_on_watchdog_end)
    starting = asyncio.create_task(_start(app))
    await stop.wait()
    watching.cancel()
    keeping.cancel()
    bound = StopBound(stop_seconds_max, limits or WatchdogLimits())
    turning = asyncio.create_task(bound.watch())
    await _stop(app, starting)
    turning.cancel()
    bound.close()
    return EXIT_OK


async def _stop(app: RoleApp, starting: asyncio.Task[None]) -> None:
    if starting.done():
        # 1. The role hands back what it has not begun; records still flow.
        if app.before_stop is not None:
            await app.before_stop()
        # 2. Transactions in flight end; none begins.
        app.chunks.stop_flow()
        await app.quiesce_for_good()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    # 3. What is acked is committed, then the group is left.
    await app.stop()


async def _start(app: RoleApp) -> None:
    try:
        await app.start()
    except asyncio.CancelledError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is, the process must end
        fail_stop(f"the app could not start: {error!r}", error)


def _on_watchdog_end(watching: asyncio.Task[None]) -> None:
    if not watching.cancelled() and watching.exception() is not None:
        fail_stop("the watchdog raised", watching.exception())


def run_app(
    app_factory: Callable[[], RoleApp],
    *,
    stop_seconds_max: float = STOP_SECONDS_MAX,
    limits: WatchdogLimits | None = None,
) -> int:
    """Build the app in a fresh event loop, run it until a signal, return the exit code."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:

        async def main() -> int:
            return await serve(app_factory(), stop_seconds_max=stop_seconds_max, limits=limits)

        return runner.run(main())


def run_through_exits(loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` to its end, whatever tasks beside it raise.

    A loop stops when a task raises SystemExit or KeyboardInterrupt, as code of others may; who
    waits for the task gets the exception all the same, and nobody else shall notice. Code of others
    that cancels ``main``, with every other task of the loop, ends the process; one that stops the
    loop stops nothing.
    """
    task = loop.create_task(main)
    while True:
        try:
            return loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt) as error:
            if task.done():
                raise
            logger.error("a task asked to end the process, and it goes on: %r", error,
                         exc_info=error)
        except RuntimeError as error:
            if task.done() or loop.is_closed():
                raise
            logger.error("code in this process has stopped its loop, and it goes on: %r", error)
        except asyncio.CancelledError as error:
            fail_stop("code in this process has cancelled the tasks that it lives by", error)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a uvloop loop where there is one, it halves the cost of a wake-up."""
    try:
        import uvloop
    except ImportError:
        return _Loop()
    return uvloop.new_event_loop()


class _Loop(asyncio.SelectorEventLoop):
    """Python's own, on a clock that user code does not replace."""

    def time(self) -> float:
        return clocks.monotonic()
