"""`Engine`: ask for jobs, let them run, move the clock, look at what has happened.

Owns the face that tests use, and the order of what happens at one instant: the ledger decides, the
worker runs, until nothing is due. Refuses to decide (`tidemill.testing.ledger`) and to run handlers
(`tidemill.testing.worker`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from tidemill.agents.worker.handlers import REGISTRY, Handler
from tidemill.agents.worker.schedules import SCHEDULES
from tidemill.completed import CompletedJob
from tidemill.policies import Duration, seconds_of
from tidemill.replaced_client import replace
from tidemill.requests import Request, encode, encode_command
from tidemill.schemas.events import JobEvent
from tidemill.schemas.schedules import USER_PREFIX
from tidemill.schemas.topics import Topics
from tidemill.testing.clock import Clock
from tidemill.testing.jobs import EngineError, EngineJob
from tidemill.testing.ledger import Ledger
from tidemill.testing.log import Log, Record
from tidemill.testing.worker import Fleet, Worker

if TYPE_CHECKING:
    from tidemill.client import Client
    from tidemill.completions import Waiter
    from tidemill.job_types import Job as AskedJob

SLOTS: Final = 100  # handlers at once, as a worker has them by default
DEFAULT_USER: Final = "test-user"
# Turns of ledger and worker at one instant: more means that jobs ask for jobs without end.
TURNS_MAX: Final = 10_000

Named = Any
"""A job: what `enqueue` gave back, a handle of a client or a typed call, or (user_id, job_id)."""


class Engine:
    """The engine and a worker in one thread, on a virtual clock. Close it, or use it as a context.

    `start`: the clock's first instant; None: now. `slots`: handlers of a kind at once.
    It runs the handlers of all modules that are imported. Inside its context typed calls and
    `tidemill.default_client()` use it.
    """

    def __init__(self, *, start: datetime | None = None, slots: int = SLOTS) -> None:
        if start is not None and start.tzinfo is None:
            raise EngineError(f"start={start!r} has no time zone: add tzinfo=UTC")
        start_ms = int((time.time() if start is None else start.timestamp()) * 1000)
        self.topics = Topics()
        self._clock = Clock(start_ms)
        self._slots = slots
        self._log = Log(self.topics.state)
        self._fleet = Fleet(_handlers, self._clock)
        self._ledger = Ledger(self._log, self.topics, self._clock, self._fleet)
        self._committed: dict[str, int] = {}
        self._gone: list[Worker] = []
        self._incarnations = 0
        self._ids = 0
        self._is_running = False
        self._is_closed = False
        self._client: Client | None = None
        self._waiters: list[Waiter] = []
        self._ends: dict[tuple[str, str], list[CompletedJob]] = {}
        self._stories: dict[tuple[str, str], list[JobEvent]] = {}
        self._read = {self.topics.events: 0, self.topics.completed: 0}
        self._undo_default: Callable[[], None] | None = None
        self._start_worker()

    # --- asking ---

    def enqueue(
        self,
        type: str | AskedJob[Any, Any],
        payload: Any = None,
        *,
        user_id: str = DEFAULT_USER,
        **options: Any,
    ) -> EngineJob:
        """Ask for a job, of a type or of a `Job`; `run` lets it run. `payload` and `options` as in
        `Request`.

        Raises InvalidRequest for what the engine would refuse, as clients do.
        """
        self._check_open()
        if isinstance(type, str):
            request = Request(type=type, payload=payload, user_id=user_id, **options)
        else:
            request = type.request(payload, user_id=user_id, **options)
        job_id = self.next_id() if request.job_id is None else request.job_id
        self.append(self.topics.requested, user_id, encode(request, job_id))
        return self.job((user_id, job_id))

    def cancel(self, job: Named, *, reason: str | None = None, actor: str | None = None) -> None:
        """As `Client.cancel`; `run` lets it act."""
        self._command("cancel", job, reason=reason, actor=actor)

    def redrive(self, job: Named, *, reason: str | None = None, actor: str | None = None) -> None:
        """As `Client.redrive`; `run` lets it act."""
        self._command("redrive", job, reason=reason, actor=actor)

    def signal(
        self, job: Named, name: str, value: Any = None, *, actor: str | None = None
    ) -> None:
        """As `Client.signal`; `run` lets it act."""
        self._command("signal", job, name=name, value=value, actor=actor)

    def _command(self, word: str, job: Named, **said: Any) -> None:
        user_id, job_id = _key_of(job)
        value = encode_command(word, user_id, job_id, self.next_id(), said)
        self.append(self.topics.commands, user_id, value)

    def announce_schedules(self, *names: str) -> None:
        """The worker announces these schedules from now on, and no others; none given: all that
        are imported. Until then none has ticks, so that other tests need not know of them.

        Raises EngineError for a name that no `@schedule` has.
        """
        known = SCHEDULES.specs()
        for name in names:
            if name not in known:
                raise EngineError(
                    f"no schedule {name!r} is imported; known are: {', '.join(known) or 'none'}"
                )
        self._fleet.announce({name: known[name] for name in names or known})

    def ticks(self, name: str) -> list[EngineJob]:
        """The jobs of a schedule's ticks so far, in order."""
        return [job for job in self.jobs if job.user_id == f"{USER_PREFIX}{name}"]

    @property
    def client(self) -> Client:
        """A `tidemill.Client` of this engine. `wait` moves the virtual clock."""
        if self._client is None:
            from tidemill.testing.client import EngineClient

            self._client = EngineClient(self)
        return self._client

    # --- time ---

    @property
    def now(self) -> datetime:
        """The virtual instant, in UTC."""
        return datetime.fromtimestamp(self._clock.now_ms / 1000, UTC)

    @property
    def now_ms(self) -> int:
        """The same as epoch ms."""
        return self._clock.now_ms

    def run(self) -> None:
        """Everything that is due at the present instant, until nothing is."""
        self._check_open()
        if self._is_running:
            raise EngineError(
                "engine.run(), advance() and waits are for tests: inside a handler the engine is "
                "running already"
            )
        self._is_running = True
        try:
            for _ in range(TURNS_MAX):
                before = self._log.appended
                self._ledger.group()
                if self._fleet.worker is not None:
                    self._fleet.worker.step()
                self._read_news()
                if self._log.appended == before and not self._ledger.has_input:
                    return
        finally:
            self._is_running = False
        raise EngineError(
            f"after {TURNS_MAX} turns there is still something to do at one instant: do jobs ask "
            "for jobs without end?"
        )

    def advance(self, duration: Duration) -> None:
        """Move the clock, and let run what becomes due on the way, each at its instant.

        `duration`: seconds, a text such as "5min", or a timedelta.
        """
        self._go_on_until(self._clock.now_ms + round(seconds_of(duration, "advance") * 1000))

    def _go_on_until(self, end_ms: int, waiter: Waiter | None = None) -> None:
        self.run()
        while waiter is None or not waiter.future.done():
            due = self._next_due_ms()
            if due is None or due > end_ms:
                self._clock.now_ms = end_ms
                self.run()
                return
            self._clock.now_ms = max(due, self._clock.now_ms + 1)
            self.run()

    def _next_due_ms(self) -> int | None:
        worker = self._fleet.worker
        found = [
            self._ledger.next_due_ms(), self._fleet.missed_at_ms(),
            worker.next_due_ms() if worker else None,
        ]
        return min((each for each in found if each is not None), default=None)

    # --- looking ---

    def job(self, job: Named) -> EngineJob:
        """The job of a handle, or of (user_id, job_id)."""
        key = _key_of(job)
        return EngineJob(
            key[0], key[1],
            lambda: self._stories.get(key, []),
            lambda: next(reversed(self._ends.get(key, [])), None),
        )

    def events(self, job: Named) -> list[str]:
        """The kinds of all events about a job, in order, such as `requested` and `dispatched`."""
        return self.job(job).events

    @property
    def jobs(self) -> list[EngineJob]:
        """All jobs of which there is an event, in the order of their first one."""
        return [self.job(key) for key in self._stories]

    def _read_news(self) -> None:
        for record in self._news(self.topics.events):
            event = JobEvent.model_validate_json(record.value or b"")
            self._stories.setdefault((event.user_id, event.job_id), []).append(event)
        for record in self._news(self.topics.completed):
            end: CompletedJob = CompletedJob.model_validate_json(record.value or b"")
            self._ends.setdefault((end.user_id, end.job_id), []).append(end)
        for waiter in self._waiters:
            self._settle(waiter)

    def _news(self, topic: str) -> list[Record]:
        found = self._log.read(topic, self._read[topic])
        self._read[topic] += len(found)
        return found

    # --- what may go wrong ---

    def kill_worker(self) -> None:
        """The worker's process dies: what it runs stops where it is, and says nothing.

        Raises EngineError when there is none.
        """
        worker = self._fleet.kill()
        if worker is None:
            raise EngineError("there is no worker: engine.restart_worker() starts one")
        self._gone.append(worker)

    def restart_worker(self) -> None:
        """A new process of the worker; a living one is killed first."""
        if self._fleet.worker is not None:
            self.kill_worker()
        self._start_worker()

    def kill_ledger(self) -> None:
        """The ledger's process dies: until `restart_ledger` nothing is decided, and no schedule
        has ticks.

        Raises EngineError when there is none.
        """
        if not self._ledger.is_alive:
            raise EngineError("there is no ledger: engine.restart_ledger() starts one")
        self._ledger.kill()

    def restart_ledger(self) -> None:
        """A new process of the ledger, which knows what the log holds; a living one is gone."""
        self._ledger.restart()

    def _start_worker(self) -> None:
        self._incarnations += 1
        self._fleet.worker = Worker(
            self._log, self.topics, self._clock, _handlers,
            incarnation=self._clock.now_ms + self._incarnations, slots=self._slots,
            committed=self._committed,
        )

    # --- for the client ---

    def append(self, topic: str, user_id: str, value: bytes) -> Record:
        """A record of a producer."""
        self._check_open()
        return self._log.append(topic, value, self._clock.now_ms, user_id.encode())

    def next_id(self) -> str:
        """The id of a job for which a test gives none: the same in each run of the test."""
        self._ids += 1
        return f"job-{self._ids}"

    def await_end(self, waiter: Waiter) -> None:
        """Its future is settled as soon as the end is there."""
        self._waiters.append(waiter)
        self._settle(waiter)

    def forget(self, waiter: Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def wait_for(self, waiter: Waiter, seconds: float) -> bool:
        """Move the clock until the end is there. False: it is not, `seconds` later."""
        if self._is_running:
            _refuse_blocking()
            return True  # the handler's own loop goes on, and the engine with it
        self._go_on_until(self._clock.now_ms + round(seconds * 1000), waiter)
        return waiter.future.done()

    def _settle(self, waiter: Waiter) -> None:
        for end in self._ends.get(waiter.key, ()):
            if end.run >= waiter.run and not waiter.future.done():
                waiter.future.set_result(end)

    # --- its life ---

    def __enter__(self) -> Self:
        self._check_open()
        self._undo_default = replace(lambda: self.client)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it; handlers that still run are cancelled."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._undo_default is not None:
            self._undo_default()
        if self._fleet.worker is not None:
            self._gone.append(self._fleet.worker)
        for worker in self._gone:
            worker.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError("this Engine is closed: use it inside its `with`, or make another")


def _handlers() -> Mapping[str, Handler]:
    return {handler.type: handler for handler in REGISTRY}


def _key_of(job: Named) -> tuple[str, str]:
    if isinstance(job, tuple):
        user_id, job_id = job
        return user_id, job_id
    return job.user_id, job.job_id


def _refuse_blocking() -> None:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise EngineError(
            "a `def` handler waits for another job, and an Engine runs handlers one after the "
            "other: make it `async def` and await the result"
        ) from None
