"""Runs attempts: takes packs, gives each job a slot, looks after time-outs, cancels and hand-backs.

Owns the life of an attempt in this process. Refuses to know Kafka (packs come in as bytes, outcomes
leave through `OutcomeWriter`) and what the ledger makes of an outcome.

Everything happens on the loop; threads and child processes only run handlers. Instead of a timer a
job, one sweep looks at what is still running.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import orjson

from agents.worker import ends
from agents.worker.async_lane import AsyncLane
from agents.worker.attempts import CANCELLED, STOPPING, TIMED_OUT, Attempt, Pack, QueueState
from agents.worker.context import has_seen_cancel
from agents.worker.ends import End
from agents.worker.failure_log import FAILURES
from agents.worker.handlers import Handler
from agents.worker.lanes import Lane, ThreadLane
from agents.worker.module_names import LoadPlan
from agents.worker.process_lane import TERM_GRACE_SECONDS, ProcessLane
from agents.worker.writer import OutcomeWriter
from schemas import SCHEMA_VERSION
from schemas.wire import (
    HANDBACK_SECONDS,
    LATE_START_SECONDS,
    PACK_JOBS_MAX,
    KindSlots,
    ReadyJob,
    RunsAs,
)
from schemas.words import Reason

SWEEP_SECONDS: Final = 0.1  # the grain of time-outs, late starts, progress and hand-backs
PROGRESS_SECONDS: Final = 0.5  # at most one progress of a job in this time
CANCEL_GRACE_SECONDS: Final = 2.0  # from `ctx.cancelled` to the end by force
GIVE_UP_SECONDS: Final = 5.0  # a cancelled coroutine that still runs after this has swallowed it
STOP_FORCE_SECONDS: Final = 0.5  # what is cancelled at the end of a stop may clean up for so long
CANCEL_WORDS_MAX: Final = 10_000  # words kept for jobs that have not arrived yet
CANCEL_WORD_SECONDS: Final = 120.0  # a word is kept for so long; its job arrives within a lease
STUCK_SHARE_MAX: Final = 0.25  # of a kind's slots: more lost ones and the worker starts afresh
COMING_SECONDS: Final = 10.0  # a job waits so long for a slot that is about to be there
REFILL_AT: Final = PACK_JOBS_MAX // 2  # waiting jobs of a queue at which more are asked for

_JOB_FIELDS: Final = frozenset(ReadyJob.model_fields) - {"traceparent"}

logger = logging.getLogger("tidemill.worker")


class Executor:
    """The slots of one worker. Make it and call it on the loop."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        writer: OutcomeWriter,
        *,
        concurrency: int,
        threads: int,
        processes: int,
        modules: LoadPlan | None = None,
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._handlers = handlers
        self._writer = writer
        self._on_room = on_room
        kinds = {handler.runs_as for handler in handlers.values()}
        self._lanes: dict[RunsAs, Lane] = {}
        if "async" in kinds:
            self._lanes["async"] = AsyncLane(self, loop, concurrency)
        if "thread" in kinds:
            self._lanes["thread"] = ThreadLane(self, loop, threads)
        if "process" in kinds:
            self._lanes["process"] = ProcessLane(self, loop, processes, modules)
        # Jobs of types that this worker does not know: they wait for their hand-back.
        self._strangers: list[Attempt] = []
        self._queues: dict[str, QueueState] = {}
        self._lanes_of: dict[str, list[Lane]] = {}
        # Words for attempts that are not here, with the instant of their arrival.
        self._early_cancels: dict[tuple[str, str, int, int], float] = {}
        self._quiet = asyncio.Event()
        self._sweeper: asyncio.TimerHandle = loop.call_later(SWEEP_SECONDS, self._sweep)
        self.is_stopping = False
        self._is_over = False  # the stop has ended: what comes now would stay here
        #: Attempts that ended here since the start.
        self.ended_total = 0

    # -- what others may know ------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Attempts that run now."""
        return sum(len(lane.running) for lane in self._lanes.values())

    @property
    def stuck(self) -> int:
        """Slots that are lost to handlers which do not end."""
        return sum(lane.stuck for lane in self._lanes.values())

    @property
    def should_recycle(self) -> bool:
        """So many slots are lost that a fresh process serves better."""
        return any(
            lane.stuck >= max(1, int(lane.capacity * STUCK_SHARE_MAX))
            for lane in self._lanes.values()
        )

    def kinds(self, *, has_way_in: bool = True) -> dict[RunsAs, KindSlots]:
        """Slots of each kind, which all queues share: a request may name any queue for its type.
        Free are those that nothing waits for, and none without a partition to fetch from."""
        is_open = has_way_in and not self.is_stopping
        return {
            kind: KindSlots(
                slots=lane.capacity - lane.stuck,
                free=max(0, lane.free - len(lane.waiting)) if is_open else 0,
            )
            for kind, lane in self._lanes.items()
        }

    def room(self, queue: str) -> int:
        """Jobs of `queue` that may be fetched now: free slots and one pack beside them.

        While stopping nothing of it begins, yet records that are on the way go back at once.
        """
        if self._is_over:
            return 0
        if self.is_stopping:
            return PACK_JOBS_MAX
        state = self._queues.get(queue)
        waiting = 0 if state is None else state.waiting
        free = sum(lane.free for lane in self._lanes_for(queue))
        return max(0, free + PACK_JOBS_MAX - waiting)

    def _lanes_for(self, queue: str) -> list[Lane]:
        lanes = self._lanes_of.get(queue)
        if lanes is None:
            kinds = {h.runs_as for h in self._handlers.values() if h.queue == queue}
            # A queue that only requests name: any handler may be asked for there.
            lanes = [self._lanes[kind] for kind in kinds or self._lanes]
            self._lanes_of[queue] = lanes
        return lanes

    # -- packs in ------------------------------------------------------------------------------

    def take(self, value: bytes | None, on_settled: Callable[[], object]) -> Pack | None:
        """Begin the jobs of a ready record; None, and settled, when it cannot be read."""
        body = _read_pack(value)
        if body is None:
            on_settled()
            return None
        queue = self._queue_of(body["queue"])
        jobs = body["jobs"]
        pack = Pack(queue, body["ledger_partition"], len(jobs), time.monotonic(), on_settled)
        if not jobs:
            on_settled()
            return pack
        for job in jobs:
            self._place(Attempt(pack, job, self._handlers.get(job["type"])))
        if self.is_stopping:
            self._return_waiting(Reason.WORKER_STOPPING)
        for lane in self._lanes.values():
            if lane.waiting:
                lane.kick()
        return pack

    def _queue_of(self, name: str) -> QueueState:
        state = self._queues.get(name)
        if state is None:
            state = self._queues[name] = QueueState(name)
        return state

    def _place(self, attempt: Attempt) -> None:
        if self._early_cancels and self._is_cancelled_early(attempt):
            self._end_unbegun(attempt, ends.cancelled())
            return
        attempt.pack.queue.waiting += 1
        if attempt.handler is None:
            self._strangers.append(attempt)
        else:
            _line_up(self._lanes[attempt.handler.runs_as].waiting, attempt)

    def drop(self, packs: Iterable[Pack]) -> list[Pack]:
        """A rebalance took the partitions of `packs`: leave as little as possible to run twice.

        Packs of which nothing has begun are forgotten and come again, here or elsewhere; they are
        the answer. Of the others, what waits is given back and what runs says that it started, so
        that they can be committed: wait for `OutcomeWriter.drain` before the partitions go.
        """
        waiting = self._all_waiting()
        counts: dict[Pack, int] = {}
        for attempt in waiting:
            counts[attempt.pack] = counts.get(attempt.pack, 0) + 1
        taken = set(packs)
        untouched = {pack for pack in taken if counts.get(pack) == pack.jobs}
        for attempt in waiting:
            if attempt.pack in untouched:
                self._forget_waiting(attempt)
                attempt.is_ended = True
            elif attempt.pack in taken:
                self._forget_waiting(attempt)
                self._end_unbegun(attempt, ends.returned(Reason.REBALANCED))
        for lane in self._lanes.values():
            for attempt in lane.running:
                if attempt.pack in taken:
                    self._tell_start(attempt)
        return list(untouched)

    def _all_waiting(self) -> list[Attempt]:
        waiting = list(self._strangers)
        for lane in self._lanes.values():
            waiting.extend(lane.waiting)
        return waiting

    def _forget_waiting(self, attempt: Attempt) -> None:
        attempt.pack.queue.waiting -= 1
        if attempt.handler is None:
            self._strangers.remove(attempt)
        else:
            self._lanes[attempt.handler.runs_as].waiting.remove(attempt)

    # -- what lanes tell -----------------------------------------------------------------------

    def begun(self, attempt: Attempt) -> None:
        """The attempt left the line; more may be fetched when few are left in it."""
        queue = attempt.pack.queue
        queue.waiting -= 1
        if queue.waiting == REFILL_AT or not queue.waiting:
            self._on_room()

    def ended(self, attempt: Attempt, end: End) -> None:
        """The handler ended by itself, or because it was told to."""
        verdict = attempt.verdict
        if verdict is not None:
            end = _end_of_verdict(attempt, end)
        elif (
            attempt.signal is not None
            and attempt.signal.is_set
            and (attempt.has_seen_cancel or has_seen_cancel(attempt.context))
        ):
            end = ends.cancelled()
        self._finish(attempt, end)

    def _finish(self, attempt: Attempt, end: End) -> None:
        attempt.is_ended = True
        self.ended_total += 1
        pack = attempt.pack
        finished_ms = int(time.time() * 1000)
        if end["kind"] == "returned":
            outcome = ends.encode(attempt.job, end, 0, 0)
        else:
            outcome = ends.encode(attempt.job, end, attempt.started_ms, finished_ms)
        self._writer.add(
            pack.ledger_partition, outcome, None if attempt.has_told_start else pack, attempt
        )
        if self.is_stopping and not self.running:
            self._quiet.set()

    def _end_unbegun(self, attempt: Attempt, end: End) -> None:
        """End an attempt that never began and is in no line."""
        attempt.started_ms = 0 if end["kind"] == "returned" else int(time.time() * 1000)
        self._finish(attempt, end)

    # -- the sweep -----------------------------------------------------------------------------

    def _sweep(self) -> None:
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        now = time.monotonic()
        for lane in self._lanes.values():
            for attempt in list(lane.running):
                self._look_after(lane, attempt, now)
            if lane.waiting:
                self._hand_back(lane, now)
                lane.kick()
        if self._strangers:
            self._hand_back_strangers()
        FAILURES.tell_rest()

    def _look_after(self, lane: Lane, attempt: Attempt, now: float) -> None:
        if not attempt.has_told_start and now - attempt.started_at >= LATE_START_SECONDS:
            self._tell_start(attempt)
        if attempt.progress is not None and now - attempt.progressed_at >= PROGRESS_SECONDS:
            self._tell_progress(attempt, now)
        if attempt.verdict is None:
            if now >= attempt.deadline:
                self._force(lane, attempt, TIMED_OUT, now)
            elif attempt.told_at and now - attempt.told_at >= CANCEL_GRACE_SECONDS:
                self._force(lane, attempt, CANCELLED, now)
        elif now - attempt.told_at >= GIVE_UP_SECONDS + TERM_GRACE_SECONDS:
            self._give_up(lane, attempt)

    def _force(self, lane: Lane, attempt: Attempt, verdict: str, now: float) -> None:
        attempt.verdict = verdict
        attempt.told_at = now
        if attempt.signal is not None:
            attempt.signal.is_set = True
        if not lane.force(attempt):
            self._give_up(lane, attempt)

    def _give_up(self, lane: Lane, attempt: Attempt) -> None:
        """Say the outcome now; the slot stays taken until the handler ends, if it ever does."""
        lane.give_up(attempt)
        self._finish(attempt, _end_of_verdict(attempt, None))

    def _tell_start(self, attempt: Attempt) -> None:
        if attempt.has_told_start or attempt.is_ended:
            return
        attempt.has_told_start = True
        outcome = ends.encode(attempt.job, {"kind": "started"}, attempt.started_ms, 0)
        self._writer.add(attempt.pack.ledger_partition, outcome, attempt.pack)

    def _tell_progress(self, attempt: Attempt, now: float) -> None:
        told, attempt.progress = attempt.progress, None
        if told == attempt.progress_told:
            return  # the same again is no news
        self._tell_start(attempt)
        attempt.progress_told = told
        attempt.progressed_at = now
        end: End = {"kind": "progressed", "progress": told}
        outcome = ends.encode(attempt.job, end, attempt.started_ms, 0)
        self._writer.add(attempt.pack.ledger_partition, outcome, None)

    def _hand_back(self, lane: Lane, now: float) -> None:
        old = [
            attempt for place, attempt in enumerate(lane.waiting)
            if now - attempt.pack.received_at
            >= (COMING_SECONDS if place < lane.coming else HANDBACK_SECONDS)
        ]
        for attempt in old:
            self._forget_waiting(attempt)
            self._end_unbegun(attempt, ends.returned(Reason.NO_FREE_SLOT))
        if old:
            self._on_room()

    def _hand_back_strangers(self) -> None:
        """They came before the ledger knew what this worker runs; it lets them wait a while."""
        strangers = list(self._strangers)
        logger.warning(
            "gave back %d jobs of types that this worker does not run, such as %r",
            len(strangers), strangers[0].job["type"],
        )
        for attempt in strangers:
            self._forget_waiting(attempt)
            self._end_unbegun(attempt, ends.returned(Reason.TYPE_NOT_RUN))
        self._on_room()

    # -- cancel --------------------------------------------------------------------------------

    def cancel(self, user_id: str, job_id: str, run: int, epoch: int) -> None:
        """A person or a policy wants this attempt to end; it may wait, run or not be here."""
        key = (user_id, job_id, run, epoch)
        for lane in self._lanes.values():
            for attempt in lane.running:
                if attempt.key() == key:
                    self._ask_to_stop(lane, attempt)
                    return
        for attempt in self._all_waiting():
            if attempt.key() == key:
                self._forget_waiting(attempt)
                self._end_unbegun(attempt, ends.cancelled())
                return
        # Most words are for other workers; one may be quicker than its job, so it is kept a while.
        self._early_cancels[key] = time.monotonic()
        if len(self._early_cancels) > CANCEL_WORDS_MAX:
            del self._early_cancels[next(iter(self._early_cancels))]

    def _is_cancelled_early(self, attempt: Attempt) -> bool:
        told_at = self._early_cancels.pop(attempt.key(), None)
        # An id may be used anew: an old word is for a job that has long ended.
        return told_at is not None and time.monotonic() - told_at < CANCEL_WORD_SECONDS

    def _ask_to_stop(self, lane: Lane, attempt: Attempt) -> None:
        if attempt.told_at:
            return
        now = time.monotonic()
        handler = attempt.handler
        if handler is not None and not handler.takes_context:
            # It could not look: there is nothing to wait for.
            self._force(lane, attempt, CANCELLED, now)
            return
        attempt.told_at = now
        if isinstance(lane, ProcessLane):
            lane.tell_cancel(attempt)
            attempt.open_signal().is_set = True
        elif attempt.signal is not None:
            attempt.signal.is_set = True

    # -- stop ----------------------------------------------------------------------------------

    async def stop(self, grace_seconds: float) -> None:
        """Give back what waits, let what runs finish for `grace_seconds`, give back the rest.

        On return every attempt has its outcome in the writer; `OutcomeWriter.drain` comes next.
        """
        self.is_stopping = True
        self._return_waiting(Reason.WORKER_STOPPING)
        await self._until_quiet(grace_seconds)
        now = time.monotonic()
        for lane in self._lanes.values():
            for attempt in list(lane.running):
                self._force(lane, attempt, attempt.verdict or STOPPING, now)
        await self._until_quiet(STOP_FORCE_SECONDS)
        for lane in self._lanes.values():
            for attempt in list(lane.running):
                self._give_up(lane, attempt)
        self._is_over = True
        self._sweeper.cancel()
        FAILURES.tell_rest(is_last=True)
        for lane in self._lanes.values():
            await lane.close()

    def _return_waiting(self, reason: Reason) -> None:
        for attempt in self._all_waiting():
            self._forget_waiting(attempt)
            self._end_unbegun(attempt, ends.returned(reason))

    async def _until_quiet(self, seconds: float) -> None:
        if not self.running or seconds <= 0:
            return
        self._quiet.clear()
        try:
            await asyncio.wait_for(self._quiet.wait(), seconds)
        except TimeoutError:
            pass  # what still runs is dealt with by the caller


def _line_up(waiting: deque[Attempt], attempt: Attempt) -> None:
    """The line is in the order of arrival, but who was sent before goes first: a job that was
    rescued or handed back has waited already, and might else be handed back again and again."""
    if attempt.job["epoch"] == 1 or not waiting or waiting[-1].job["epoch"] > 1:
        waiting.append(attempt)
    else:
        place = next(at for at, other in enumerate(waiting) if other.job["epoch"] == 1)
        waiting.insert(place, attempt)


def _end_of_verdict(attempt: Attempt, end: End | None) -> End:
    """How an attempt ends that was made to end; `end` is what it said itself, None if nothing."""
    match attempt.verdict:
        case "timed_out":
            note = "" if end is not None else "; it does not stop and still holds its slot"
            return ends.timed_out(attempt.job["timeout_ms"], note)
        case "cancelled":
            return ends.cancelled()
        case _:
            # The worker stops: work that was finished all the same is not thrown away.
            if end is not None and end["kind"] in ("succeeded", "skipped"):
                return end
            return ends.returned(Reason.WORKER_STOPPING)


def _read_pack(value: bytes | None) -> dict[str, Any] | None:
    """The pack as plain dicts; it is our own record, so it is not validated again."""
    try:
        body: dict[str, Any] = orjson.loads(value or b"")
        version = body["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        logger.error("a ready record is no pack (%r) and is left out", error)
        return None
    if version != SCHEMA_VERSION:
        logger.error(
            "a ready record has schema version %r, this worker reads %d, and it is left out: run "
            "the same release as the ledger", version, SCHEMA_VERSION,
        )
        return None
    if not _has_shape(body):
        logger.error("a ready record lacks fields of a pack and is left out: %.200r", value)
        return None
    return body


def _has_shape(body: dict[str, Any]) -> bool:
    """Whether the fields are there that the worker counts on: rubbish must not end it."""
    jobs = body.get("jobs")
    if (
        not isinstance(body.get("queue"), str)
        or not isinstance(body.get("ledger_partition"), int)
        or not isinstance(jobs, list)
    ):
        return False
    for job in jobs:  # a generator's turns cost as much as what they look at
        if not isinstance(job, dict) or not job.keys() >= _JOB_FIELDS:
            return False
        if not (
            isinstance(job["type"], str)
            and isinstance(job["timeout_ms"], int)
            and isinstance(job["epoch"], int)
        ):
            return False
    return True
