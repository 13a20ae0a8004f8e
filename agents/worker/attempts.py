"""The worker's record of a pack and of one attempt in it.

Owns what is counted and when a pack's offset may be committed. Refuses to run anything.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, Protocol

from tidemill.agents.worker.context import Context, Signal
from tidemill.agents.worker.handlers import Handler
from tidemill.schemas.wire import RunsAs

# Why a running attempt was told to end. None while nobody has told it.
TIMED_OUT: Final = "timed_out"
CANCELLED: Final = "cancelled"
STOPPING: Final = "stopping"


def _nothing() -> None:
    """In place of a call that was made."""


class QueueState:
    """How many jobs of one queue wait in this worker."""

    __slots__ = ("name", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting = 0


class Settled(Protocol):
    """What learns that a word is durable."""

    def settle(self) -> None: ...


class Keeper(Protocol):
    """What makes a word of a handler durable."""

    def keep(self, attempt: Attempt, word: dict[str, Any]) -> Future[None]: ...


class Permit:
    """A start that must be durable before the handler is called."""

    __slots__ = ("_go", "_pack")

    def __init__(self, pack: Pack, go: Callable[[], None]) -> None:
        self._pack = pack
        self._go = go

    def settle(self) -> None:
        self._pack.settle()
        self._go()


class Pack:
    """One ready record: it may be committed once each of its jobs has a durable word.

    The word is a `started` or the last outcome, whichever is durable first.
    """

    __slots__ = (
        "jobs", "keeper", "ledger_partition", "on_settled", "queue", "received_at", "unsettled",
    )

    def __init__(
        self,
        queue: QueueState,
        ledger_partition: int,
        jobs: int,
        received_at: float,
        on_settled: Callable[[], object],
        keeper: Keeper | None = None,
    ) -> None:
        self.queue = queue
        self.keeper = keeper
        self.ledger_partition = ledger_partition
        self.jobs = jobs
        self.unsettled = jobs
        #: Monotonic seconds.
        self.received_at = received_at
        self.on_settled = on_settled

    def settle(self) -> None:
        """One more job of the pack has a durable word."""
        self.unsettled -= 1
        if not self.unsettled:
            self._tell_settled()

    def rebind(self, on_settled: Callable[[], object]) -> None:
        """The same record came again: its jobs are not run twice, its new delivery is acked."""
        self.on_settled = on_settled
        if not self.unsettled:
            self._tell_settled()

    def _tell_settled(self) -> None:
        # A pack is remembered for long; the call would keep the bytes of its whole chunk.
        on_settled, self.on_settled = self.on_settled, _nothing
        on_settled()


class Attempt:
    """One job of a pack, from its arrival to its outcome."""

    __slots__ = (
        "context",
        "deadline",
        "handler",
        "has_seen_cancel",
        "has_told_start",
        "is_ended",
        "job",
        "pack",
        "progress",
        "progress_told",
        "progressed_at",
        "runner",
        "signal",
        "stack",
        "standing",
        "started_at",
        "started_ms",
        "told_at",
        "verdict",
    )

    def __init__(self, pack: Pack, job: dict[str, Any], handler: Handler | None) -> None:
        self.pack = pack
        self.job = job
        #: None: a type that this worker does not know.
        self.handler = handler
        #: Epoch ms; 0 while it waits.
        self.started_ms = 0
        self.is_ended = False
        # What follows is for attempts that do not end at once; `suspend` sets the rest.
        self.signal: Signal | None = None
        self.context: Context | None = None
        self.verdict: str | None = None
        self.has_told_start = False
        #: Only from a child process; here the context knows.
        self.has_seen_cancel = False
        #: The latest that the handler told and that was not published yet.
        self.progress: dict[str, Any] | None = None
        self.progress_told: dict[str, Any] | None = None
        self.runner: Any = None

    def suspend(self, runner: Any, now: float) -> None:
        """It goes on running: from here time-outs, cancel and progress are looked after."""
        self.runner = runner
        #: The coroutine or the number of the thread that runs the handler; None: not here.
        self.standing: object = None
        #: Where the handler stood when its time was over, as the event keeps it.
        self.stack: str | None = None
        #: Monotonic seconds.
        self.started_at = now
        self.deadline = now + self.job["timeout_ms"] / 1000
        #: Monotonic instant at which the verdict was told; the grace runs from there.
        self.told_at = 0.0
        self.progressed_at = now

    def open_context(self) -> Context:
        """The handler's context, made when a handler wants one."""
        keeper = self.pack.keeper
        keep = None if keeper is None else partial(keeper.keep, self)
        self.context = Context(self.job, self.open_signal(), self.set_progress, keep)
        return self.context

    def open_signal(self) -> Signal:
        """The word to stop of this attempt."""
        if self.signal is None:
            self.signal = Signal()
        return self.signal

    def set_progress(self, told: dict[str, Any]) -> None:
        """Keep the latest; a single reference is set, so any thread may call it."""
        self.progress = told

    @property
    def rescues(self) -> int:
        """How often a worker was lost under this run of the job."""
        found: int = self.job.get("rescues", 0)
        return found

    @property
    def runs_as(self) -> RunsAs:
        """The kind of slot that it needs."""
        assert self.handler is not None
        return self.handler.runs_as

    @property
    def is_running(self) -> bool:
        """Whether its handler has begun and not ended at once."""
        return self.runner is not None

    @property
    def is_waiting(self) -> bool:
        """Whether its handler has not begun, and is still about to."""
        return self.runner is None and not self.is_ended

    def key(self) -> tuple[str, str, int, int]:
        """Which attempt of all: user, job, run, epoch."""
        job = self.job
        return (job["user_id"], job["job_id"], job["run"], job["epoch"])
