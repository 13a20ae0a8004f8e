"""The worker of an engine under test: it runs handlers in this thread, one after the other.

Owns the order in which attempts begin, and when virtual time ends one of them, as
`tidemill.agents.worker.executor` does for real time. Refuses to know how a handler is called and
how its end is worded: that is the worker's own code.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final

import orjson
from pydantic import ValidationError

from tidemill.agents.worker import attempts, outcomes
from tidemill.agents.worker.attempts import Attempt, Pack, QueueState
from tidemill.agents.worker.context import has_seen_cancel
from tidemill.agents.worker.graces import Graces
from tidemill.agents.worker.handlers import Handler
from tidemill.agents.worker.lanes import run_blocking
from tidemill.agents.worker.outcomes import Outcome
from tidemill.agents.worker.packs import PackReader, why_not_run
from tidemill.agents.worker.signature import is_coroutine
from tidemill.agents.worker.verdicts import end_of_verdict
from tidemill.schemas import SCHEMA_VERSION
from tidemill.schemas.schedules import ScheduleSpec
from tidemill.schemas.topics import Topics
from tidemill.schemas.wire import (
    HANDBACK_SECONDS,
    HEARTBEAT_MISSING_SECONDS,
    LATE_START_SECONDS,
    ControlMessage,
    Definition,
    RunsAs,
)
from tidemill.schemas.words import Reason
from tidemill.streams.dispatch.slot_pool import Groups, SlotPoolName
from tidemill.streams.partition import Capacity
from tidemill.streams.schedules.announced import NOTHING, Announced, Announcement
from tidemill.testing.clock import Clock, VirtualLoop, outside_of_loops
from tidemill.testing.log import Log

WORKER_ID: Final = "worker"
PROGRESS_SECONDS: Final = 0.5  # at most one progress of a job in this time
GIVE_UP_SECONDS: Final = 7.0  # a handler that still runs so long after its end is given up on
MISSING_MS: Final = int(HEARTBEAT_MISSING_SECONDS * 1000)  # ms of silence
GRACES: Final = Graces()
_NO_JOBS: Final[Mapping[str, Any]] = {"queue": "", "ledger_partition": 0, "jobs": []}

Handlers = Callable[[], Mapping[str, Handler]]


class Worker:
    """One process of the worker; the next one has a higher `incarnation`."""

    def __init__(
        self, log: Log, topics: Topics, clock: Clock, handlers: Handlers, *,
        incarnation: int, slots: int, committed: dict[str, int],
    ) -> None:
        self._log = log
        self._topics = topics
        self._clock = clock
        self._handlers = handlers
        self.incarnation = incarnation
        self._slots = slots
        self._committed = committed  # by ready topic: survives this process
        self._open: dict[str, dict[int, Pack]] = {}
        self._reader = PackReader()
        self._positions = dict(committed)
        #: Below these, records may have been delivered before.
        self._doubtful = {topic: log.end(topic) for topic in committed}
        self._control = log.end(topics.control)
        self._waiting: deque[Attempt] = deque()
        self._running: dict[Attempt, asyncio.Task[None]] = {}
        self._ends: dict[Attempt, Outcome] = {}
        self._given_up: list[asyncio.Task[None]] = []
        self._told: list[tuple[bytes, Pack | None]] = []
        self._loop = VirtualLoop(clock)
        self._beats = 0

    # --- what it tells of itself ---

    def groups(self) -> dict[str, Groups]:
        """By queue, the types that it runs."""
        handlers = self._handlers()
        types: Groups = dict.fromkeys(sorted(handlers), "")
        return {handler.queue: types for handler in handlers.values()}

    def capacity(self) -> dict[SlotPoolName, Capacity]:
        """The slots of each queue and kind."""
        self._beats += 1
        found: dict[SlotPoolName, Capacity] = {}
        kinds: set[RunsAs] = {handler.runs_as for handler in self._handlers().values()}
        for queue in self.groups():
            for kind in kinds:
                free = max(0, self._slots - len(self._running) - len(self._waiting))
                found[SlotPoolName(queue, kind, "")] = Capacity(
                    self._slots, free, 1, (0,), self._beats
                )
        return found

    # --- one moment ---

    def step(self) -> None:
        """Everything that it does at the present instant."""
        for record in self._log.read(self._topics.control, self._control):
            self._control = record.offset + 1
            self._hear(ControlMessage.model_validate_json(record.value or b""))
        for queue in self.groups():
            self._take(self._topics.ready(queue))
        self._look_after()
        self._run_loop()
        while self._waiting and len(self._running) < self._slots:
            self._begin(self._waiting.popleft())
        self._write()

    def next_due_ms(self) -> int | None:
        """Epoch ms at which time alone brings something; None when nothing waits for time."""
        found = [self._loop.next_due_ms()]
        found += [self._clock.ms_of(self._look_at(attempt)) for attempt in self._running]
        found += [
            self._clock.ms_of(attempt.pack.received_at + HANDBACK_SECONDS)
            for attempt in self._waiting
        ]
        return min((each for each in found if each is not None), default=None)

    def _look_at(self, attempt: Attempt) -> float:
        if attempt.verdict is not None:
            return attempt.told_at + GIVE_UP_SECONDS
        due: list[float] = [attempt.deadline]
        if not attempt.has_told_start:
            due.append(attempt.started_at + LATE_START_SECONDS)
        if attempt.progress is not None:
            due.append(attempt.progressed_at + PROGRESS_SECONDS)
        if attempt.told_at:
            due.append(attempt.told_at + GRACES.cancel)
        return min(due)

    # --- in ---

    def _take(self, topic: str) -> None:
        self._committed.setdefault(topic, 0)
        for record in self._log.read(topic, self._positions.get(topic, 0)):
            self._positions[topic] = record.offset + 1
            body = self._reader.read(record.value) or _NO_JOBS
            pack = Pack(
                QueueState(body["queue"]), body["ledger_partition"], len(body["jobs"]),
                self._clock.seconds(), lambda: self._commit(topic), self,
            )
            self._open.setdefault(topic, {})[record.offset] = pack
            handlers = self._handlers()
            is_doubtful = record.offset < self._doubtful.get(topic, 0)
            for job in body["jobs"]:
                attempt = Attempt(pack, job, handlers.get(job["type"]))
                if is_doubtful:
                    end = outcomes.returned(Reason.REDELIVERED, None, WORKER_ID)
                    self._finish(attempt, end)
                elif attempt.handler is None:
                    self._finish(attempt, outcomes.returned(why_not_run(job)))
                else:
                    self._waiting.append(attempt)

    def _commit(self, topic: str) -> None:
        """The contiguous prefix of packs whose jobs were all told of."""
        packs = self._open[topic]
        while (pack := packs.get(self._committed[topic])) is not None and not pack.unsettled:
            del packs[self._committed[topic]]
            self._committed[topic] += 1

    def _hear(self, word: ControlMessage) -> None:
        key = (word.user_id, word.job_id, word.run, word.epoch)
        for attempt in list(self._running):
            if attempt.key() == key and not attempt.told_at:
                handler = attempt.handler
                attempt.told_at = self._clock.seconds()
                attempt.open_signal().is_set = True
                if handler is not None and not handler.takes_context:
                    self._force(attempt, attempts.CANCELLED)
        for attempt in list(self._waiting):
            if attempt.key() == key:
                self._waiting.remove(attempt)
                attempt.started_ms = self._clock.now_ms
                self._finish(attempt, outcomes.cancelled())

    # --- attempts ---

    def _begin(self, attempt: Attempt) -> None:
        handler = attempt.handler
        assert handler is not None  # only such attempts wait
        attempt.started_ms = self._clock.now_ms
        attempt.suspend(self, self._clock.seconds())
        if attempt.rescues:
            self._tell_start(attempt)
        if handler.runs_as == "async" or is_coroutine(handler.function):
            self._begin_coroutine(attempt, handler)
        else:
            with outside_of_loops():
                end = run_blocking(attempt)
            self._tell_progress(attempt)
            self._ended(attempt, end)

    def _begin_coroutine(self, attempt: Attempt, handler: Handler) -> None:
        try:
            arguments = handler.arguments(attempt.job["payload"], attempt)
        except ValidationError as error:
            self._ended(attempt, outcomes.invalid_payload(handler, error))
            return
        except BaseException as error:  # noqa: BLE001  # a validator may do anything
            self._ended(attempt, outcomes.error(error, attempt.job, attempt.context))
            return
        self._running[attempt] = self._loop.create_task(
            self._drive(attempt, handler, arguments), context=contextvars.Context()
        )
        self._run_loop()

    async def _drive(self, attempt: Attempt, handler: Handler, arguments: tuple[Any, ...]) -> None:
        try:
            value = await handler.function(*arguments)
        except asyncio.CancelledError as error:
            if attempt.verdict is not None:
                end = outcomes.cancelled()
            else:
                end = outcomes.error(error, attempt.job, attempt.context)
        except GeneratorExit:
            raise  # it was given up on, and nobody remembers it
        except BaseException as error:  # noqa: BLE001  # SystemExit is a failed attempt too
            end = outcomes.error(error, attempt.job, attempt.context)
        else:
            end = outcomes.result(value, attempt.context, handler)
        self._ends[attempt] = end

    def _run_loop(self) -> None:
        self._loop.run_until_idle()
        ends, self._ends = self._ends, {}
        for attempt, end in ends.items():
            self._running.pop(attempt, None)
            if not attempt.is_ended:
                self._ended(attempt, end)

    def _look_after(self) -> None:
        """Whatever is due of attempts that go on, and of those that wait for a slot."""
        now = self._clock.seconds()
        for attempt in list(self._running):
            if now < self._look_at(attempt) and attempt.verdict is None:
                continue
            if now - attempt.started_at >= LATE_START_SECONDS:
                self._tell_start(attempt)
            if now - attempt.progressed_at >= PROGRESS_SECONDS:
                self._tell_progress(attempt)
            if attempt.verdict is None:
                if now >= attempt.deadline:
                    self._force(attempt, attempts.TIMED_OUT)
                elif attempt.told_at and now - attempt.told_at >= GRACES.cancel:
                    self._force(attempt, attempts.CANCELLED)
            elif now - attempt.told_at >= GIVE_UP_SECONDS:
                self._finish(attempt, end_of_verdict(attempt, None))
                self._given_up.append(self._running.pop(attempt))
        for attempt in list(self._waiting):
            if now - attempt.pack.received_at >= HANDBACK_SECONDS:
                self._waiting.remove(attempt)
                self._finish(attempt, outcomes.returned(Reason.NO_FREE_SLOT))

    def _force(self, attempt: Attempt, verdict: str) -> None:
        attempt.verdict = verdict
        attempt.told_at = self._clock.seconds()
        attempt.open_signal().is_set = True
        self._running[attempt].cancel()

    def _ended(self, attempt: Attempt, end: Outcome) -> None:
        """As `Executor.ended`."""
        if attempt.verdict is not None:
            end = end_of_verdict(attempt, end)
        elif (
            attempt.signal is not None
            and attempt.signal.is_set
            and has_seen_cancel(attempt.context)
        ):
            end = outcomes.cancelled()
        self._finish(attempt, end)

    # --- out ---

    def _tell_start(self, attempt: Attempt) -> None:
        if not attempt.has_told_start:
            attempt.has_told_start = True
            self._say(attempt, {"kind": "started"}, attempt.pack)

    def _tell_progress(self, attempt: Attempt) -> None:
        """The latest, of an attempt that has run for long enough to be told of."""
        told, attempt.progress = attempt.progress, None
        if told is None or told == attempt.progress_told or not attempt.has_told_start:
            return
        attempt.progress_told = told
        attempt.progressed_at = self._clock.seconds()
        self._say(attempt, {"kind": "progressed", "progress": told}, None)

    def keep(self, attempt: Attempt, word: Outcome) -> Future[None]:
        """As `Teller.keep`: the word is in the log when the call returns."""
        done: Future[None] = Future()
        if attempt.is_ended:
            done.set_exception(RuntimeError(f"{word['name']!r}: its attempt is over"))
            return done
        self._tell_start(attempt)
        self._say(attempt, word, None)
        self._write()
        done.set_result(None)
        return done

    def _say(self, attempt: Attempt, word: Outcome, waits: Pack | None) -> None:
        self._told.append((outcomes.encode(attempt.job, word, attempt.started_ms, 0), waits))

    def _finish(self, attempt: Attempt, end: Outcome) -> None:
        attempt.is_ended = True
        is_returned = end["kind"] == "returned"
        outcome = outcomes.encode(
            attempt.job, end, 0 if is_returned else attempt.started_ms,
            0 if is_returned else self._clock.now_ms,
        )
        self._told.append((outcome, None if attempt.has_told_start else attempt.pack))

    def _write(self) -> None:
        """What was said becomes durable; then ready records may be forgotten."""
        told, self._told = self._told, []
        if not told:
            return
        head = orjson.dumps(
            {
                "schema_version": SCHEMA_VERSION, "worker_id": WORKER_ID,
                "incarnation": self.incarnation,
            }
        )
        value = head[:-1] + b',"outcomes":[' + b",".join(each for each, _ in told) + b"]}"
        self._log.append(self._topics.outcomes, value, self._clock.now_ms)
        for _, pack in told:
            if pack is not None:
                pack.settle()

    # --- the end ---

    def close(self) -> None:
        """The process is gone: what its handlers would do next never happens."""
        for attempt, task in self._running.items():
            # It was asleep until here; a `finally` of its handler runs now.
            attempt.verdict = attempts.STOPPING
            task.cancel()
        self._loop.run_until_idle()
        for task in [*self._running.values(), *self._given_up]:
            # It holds on to its cancel; asyncio would tell of it once more.
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._loop.close()


class Fleet:
    """The worker as heartbeats tell of it: a dead one is missed after some silence."""

    def __init__(self, handlers: Handlers, clock: Clock) -> None:
        self._clock = clock
        self._dead: tuple[Worker, int] | None = None
        self._announced: Announced = NOTHING
        self._handlers = handlers
        self._known: dict[str, tuple[Handler, Definition]] = {}
        self.worker: Worker | None = None

    def kill(self) -> Worker | None:
        """The process is gone, and nobody knows; None when there is none."""
        worker, self.worker = self.worker, None
        if worker is not None:
            self._dead = (worker, self._clock.now_ms)
        return worker

    def missed_at_ms(self) -> int | None:
        """Epoch ms at which a dead worker is missed; None without one."""
        if self.worker is not None or self._dead is None:
            return None
        at_ms = self._dead[1] + MISSING_MS
        return at_ms if at_ms > self._clock.now_ms else None

    def alive(self) -> Mapping[str, int]:
        worker = self._heard()
        return {} if worker is None else {WORKER_ID: worker.incarnation}

    def groups(self) -> Mapping[str, Groups]:
        worker = self._heard()
        return {} if worker is None else worker.groups()

    def _heard(self) -> Worker | None:
        if self.worker is None and self._dead and self.missed_at_ms() is not None:
            return self._dead[0]
        return self.worker

    def announce(self, specs: Mapping[str, ScheduleSpec]) -> None:
        """The worker's modules have these schedules."""
        self._announced = (Announcement(WORKER_ID, (), dict(specs)),)

    def announced(self) -> Announced:
        return NOTHING if self._heard() is None else self._announced

    def capacity(self) -> Mapping[SlotPoolName, Capacity]:
        return {} if self.worker is None else self.worker.capacity()

    def definitions(self) -> list[Definition]:
        """Of all handlers that there are; each is made once."""
        for name, handler in self._handlers().items():
            known = self._known.get(name)
            if known is None or known[0] is not handler:
                self._known[name] = (handler, handler.definition())
        return [definition for _, definition in self._known.values()]
