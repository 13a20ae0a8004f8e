"""Runs attempts: takes packs, gives each job a slot, looks after time-outs, cancels and hand-backs.

Owns the life of an attempt in this process. Refuses to know Kafka (packs come in as bytes, outcomes
leave through `OutcomeWriter`) and what the ledger makes of an outcome.

Everything happens on the loop; threads and child processes only run handlers. Instead of a timer a
job, one sweep looks at what is still running.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from tidemill.agents import clocks
from tidemill.agents.worker import attempts, outcomes
from tidemill.agents.worker.apart import Apart
from tidemill.agents.worker.async_lane import AsyncLane
from tidemill.agents.worker.attempts import Attempt, Pack, QueueState
from tidemill.agents.worker.context import has_seen_cancel
from tidemill.agents.worker.early_cancels import EarlyCancels
from tidemill.agents.worker.failure_log import FAILURES
from tidemill.agents.worker.graces import NO_GRACES, Graces, tell_forced
from tidemill.agents.worker.handlers import Handler
from tidemill.agents.worker.lanes import Lane, ThreadLane, line_up
from tidemill.agents.worker.module_names import LoadPlan
from tidemill.agents.worker.outcomes import Outcome
from tidemill.agents.worker.packs import PackReader, why_not_run
from tidemill.agents.worker.process_lane import TERM_GRACE_SECONDS, ProcessLane
from tidemill.agents.worker.pulse import Pulse
from tidemill.agents.worker.standstill import Standstill, put_off
from tidemill.agents.worker.surroundings import Surroundings
from tidemill.agents.worker.suspects import Suspects, is_apart
from tidemill.agents.worker.telling import Teller
from tidemill.agents.worker.verdicts import end_of_verdict
from tidemill.agents.worker.writer import OutcomeWriter
from tidemill.schemas.wire import (
    HANDBACK_SECONDS,
    LATE_START_SECONDS,
    PACK_JOBS_MAX,
    KindSlots,
    RunsAs,
)
from tidemill.schemas.words import Reason

SWEEP_SECONDS: Final = 0.1  # the grain of time-outs, late starts, progress and hand-backs
PROGRESS_SECONDS: Final = 0.5  # at most one progress of a job in this time
GIVE_UP_SECONDS: Final = 5.0  # a cancelled coroutine that still runs after this has swallowed it
STOP_FORCE_SECONDS: Final = 0.5  # what is cancelled at the end of a stop may clean up for so long
STUCK_SHARE_MAX: Final = 0.25  # of a kind's slots: more lost ones and the worker starts afresh
COMING_SECONDS: Final = 10.0  # a job waits so long for a slot that is about to be there
REFILL_AT: Final = PACK_JOBS_MAX // 2  # waiting jobs of a queue at which more are asked for

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
        former_ends: Mapping[str, str] | None = None,
        pulse: Pulse | None = None,
        graces: Graces = NO_GRACES,
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._handlers, self._writer = handlers, writer
        self._teller = Teller(writer, loop)
        self._on_room, self._graces = on_room, graces
        self._standstill = Standstill(pulse or Pulse(), handlers)
        self._surroundings = Surroundings(has_others=True)
        #: Called when a standstill is over and what waited has been handed back.
        self.on_standstill: Callable[[], None] = lambda: None
        kinds = {handler.runs_as for handler in handlers.values()}
        self._lanes: dict[RunsAs, Lane] = {}
        if "async" in kinds:
            self._lanes["async"] = AsyncLane(self, loop, concurrency)
        if "thread" in kinds:
            self._lanes["thread"] = ThreadLane(self, loop, threads)
        if "process" in kinds:
            self._lanes["process"] = ProcessLane(self, loop, processes, modules, graces)
        self._apart = Apart(self, loop, processes, modules, graces)
        # Jobs of types that this worker does not know: they wait for their hand-back.
        self._unknown_types: list[Attempt] = []
        self._former_ends = former_ends or {}  # how former owners of our partitions ended
        self._suspects = Suspects(
            tell=self._teller.start_first, begin=self._begin_suspect, lane=self._lane_of
        )
        self._queues: dict[str, QueueState] = {}
        self._lanes_of: dict[str, list[Lane]] = {}
        self._early_cancels, self._reader = EarlyCancels(), PackReader()
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
        return sum(len(lane.running) for lane in self._every_lane())

    @property
    def stuck(self) -> int:
        """Slots that are lost to handlers which do not end."""
        return sum(lane.stuck for lane in self._every_lane())

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
        suspects = self._suspects
        return {
            kind: KindSlots(
                slots=lane.capacity - lane.stuck,
                free=max(0, lane.free - len(lane.waiting) - suspects.count(kind)) if is_open else 0,
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
        waiting = self._queue_of(queue).waiting
        free = sum(lane.free for lane in self._lanes_for(queue))
        return 0 if self._reader.is_full else max(0, free + PACK_JOBS_MAX - waiting)

    def _every_lane(self) -> list[Lane]:
        return [*self._lanes.values(), *self._apart.lanes]

    def _lane_of(self, attempt: Attempt) -> Lane:
        return self._apart.open() if is_apart(attempt) else self._lanes[attempt.runs_as]

    def _all_running(self) -> list[tuple[Lane, Attempt]]:
        return [(lane, attempt) for lane in self._every_lane() for attempt in lane.running]

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
        """Begin the jobs of a ready record; None, and settled, when it has none for now."""
        opened = self._open(value, on_settled)
        if opened is None:
            return None
        pack, opened_attempts = opened
        for attempt in opened_attempts:
            self._place(attempt)
        if self.is_stopping:
            self._return_waiting(Reason.WORKER_STOPPING)
        for lane in self._every_lane():
            if lane.waiting:
                lane.kick()
        if self._suspects.waiting:
            self._suspects.kick()
        return pack

    def give_back(
        self,
        value: bytes | None,
        on_settled: Callable[[], object],
        former_owner: str | None,
        reason: Reason = Reason.REDELIVERED,
    ) -> Pack | None:
        """Hand back the jobs of a record that may have been delivered before, to `former_owner`:
        one of them may have ended its worker, and any may have ended since. The ledger knows."""
        opened = self._open(value, on_settled)
        if opened is None:
            return None
        pack, opened_attempts = opened
        detail = self._former_ends.get(former_owner or "")
        for attempt in opened_attempts:
            self._end_unbegun(attempt, outcomes.returned(reason, detail, former_owner))
        return pack

    def _open(
        self, value: bytes | None, on_settled: Callable[[], object]
    ) -> tuple[Pack, list[Attempt]] | None:
        body = self._reader.read(value)
        if body is None:
            on_settled()
            return None
        jobs, place = body["jobs"], body["ledger_partition"]
        queue = self._queue_of(body["queue"])
        pack = Pack(queue, place, len(jobs), clocks.monotonic(), on_settled, self._teller)
        if not jobs:
            on_settled()
        handlers = self._handlers
        made = [Attempt(pack, job, handlers.get(job["type"])) for job in jobs]
        self._reader.note(body, made)
        return pack, made

    def _queue_of(self, name: str) -> QueueState:
        if name not in self._queues:
            self._queues[name] = QueueState(name)
        return self._queues[name]

    def _place(self, attempt: Attempt) -> None:
        if self._early_cancels and self._early_cancels.take(attempt.key()):
            self._end_unbegun(attempt, outcomes.cancelled())
            return
        attempt.pack.queue.waiting += 1
        if attempt.handler is None:
            self._unknown_types.append(attempt)
        elif "rescues" in attempt.job and attempt.rescues > 0:
            self._suspects.add(attempt)
        else:
            line_up(self._lanes[attempt.handler.runs_as].waiting, attempt)

    def untouched(self, packs: Iterable[Pack]) -> set[Pack]:
        """Those of which nothing has begun."""
        counts = Counter(each.pack for each in self._all_waiting() if not each.has_told_start)
        return {pack for pack in packs if counts.get(pack) == pack.jobs}

    def drop(self, packs: Iterable[Pack], *, forget: Collection[Pack]) -> None:
        """A rebalance took the partitions of `packs`: leave as little as possible to run twice.

        Packs in `forget`, of which nothing has begun, come again, here or elsewhere. Of the others,
        what waits is given back and what runs says that it started, so that they can be committed:
        wait for `OutcomeWriter.drain` before the partitions go.
        """
        taken = set(packs)
        for attempt in self._all_waiting():
            if attempt.pack in forget:
                self._forget_waiting(attempt)
                attempt.is_ended = True
            elif attempt.pack in taken and not attempt.has_told_start:
                self._forget_waiting(attempt)
                self._end_unbegun(attempt, outcomes.returned(Reason.REBALANCED))
        for _, attempt in self._all_running():
            if attempt.pack in taken:
                self._teller.start(attempt)

    def _all_waiting(self) -> list[Attempt]:
        waiting = [*self._unknown_types, *self._suspects.waiting]
        for lane in self._every_lane():
            waiting.extend(lane.waiting)
        return waiting

    def _forget_waiting(self, attempt: Attempt) -> None:
        attempt.pack.queue.waiting -= 1
        if attempt.handler is None:
            self._unknown_types.remove(attempt)
        elif attempt in self._suspects.waiting:
            self._suspects.waiting.remove(attempt)
        else:
            self._lane_of(attempt).waiting.remove(attempt)

    # -- what lanes tell -----------------------------------------------------------------------

    def begun(self, attempt: Attempt) -> bool:
        """The attempt left the line; more may be fetched when few are left in it. False: it has
        been handed back, and must not begin."""
        queue = attempt.pack.queue
        queue.waiting -= 1
        if not self._standstill.may_begin(attempt.job):
            self._end_unbegun(attempt, outcomes.returned(Reason.WORKER_STALLED))
            self.look_for_standstill()
            return False
        if queue.waiting == REFILL_AT or not queue.waiting:
            self._on_room()
        return True

    def ended(self, attempt: Attempt, end: Outcome) -> None:
        """The handler ended by itself, or because it was told to."""
        verdict = attempt.verdict
        if verdict is not None:
            end = end_of_verdict(attempt, end)
        elif (
            attempt.signal is not None
            and attempt.signal.is_set
            and (attempt.has_seen_cancel or has_seen_cancel(attempt.context))
        ):
            end = outcomes.cancelled()
        self._finish(attempt, end)

    def _finish(self, attempt: Attempt, end: Outcome) -> None:
        attempt.is_ended = True
        self.ended_total += 1
        pack = attempt.pack
        times = (0, 0) if end["kind"] == "returned" else (attempt.started_ms, clocks.wall_ms())
        outcome = outcomes.encode(attempt.job, end, *times)
        self._writer.add(
            pack.ledger_partition, outcome, None if attempt.has_told_start else pack, attempt
        )
        if attempt.has_told_start:
            self._suspects.over(attempt)
        if self.is_stopping and not self.running:
            self._quiet.set()

    def _begin_suspect(self, attempt: Attempt) -> None:
        """The start is durable: it gets the next slot, unless somebody wants it to end."""
        is_cancelled = bool(self._early_cancels) and self._early_cancels.take(attempt.key())
        if self.is_stopping or is_cancelled:
            attempt.pack.queue.waiting -= 1
            stopping = outcomes.returned(Reason.WORKER_STOPPING)
            self._end_unbegun(attempt, outcomes.cancelled() if is_cancelled else stopping)
        else:
            lane = self._lane_of(attempt)
            lane.waiting.appendleft(attempt)
            lane.kick()

    def _end_unbegun(self, attempt: Attempt, end: Outcome) -> None:
        """End an attempt that never began and is in no line."""
        attempt.started_ms = 0 if end["kind"] == "returned" else clocks.wall_ms()
        self._finish(attempt, end)

    # -- the sweep -----------------------------------------------------------------------------

    def _sweep(self) -> None:
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        now = clocks.monotonic()
        self.look_for_standstill()
        self._surroundings.look(self._standstill.latest)
        for lane, attempt in self._all_running():
            self._look_after(lane, attempt, now)
        for lane in self._every_lane():
            if lane.waiting:
                self._hand_back(lane, now)
                lane.kick()
        if self._unknown_types:
            self._hand_back_unknown_types()
        self._suspects.look(now)
        self._apart.look(now)
        self._reader.parts.look(now)
        self._hand_back_suspects(now)
        FAILURES.tell_rest()

    def look_for_standstill(self) -> None:
        """The loop turns. After a standstill nothing begins that had not begun before."""
        paused = self._standstill.turn(SWEEP_SECONDS)
        if not paused:
            return
        for lane in self._every_lane():
            put_off(lane.running, paused)
        self._return_waiting(Reason.WORKER_STALLED)
        self.on_standstill()

    def _look_after(self, lane: Lane, attempt: Attempt, now: float) -> None:
        if not attempt.has_told_start and now - attempt.started_at >= LATE_START_SECONDS:
            self._teller.start(attempt)
        if attempt.progress is not None and now - attempt.progressed_at >= PROGRESS_SECONDS:
            self._teller.progress(attempt, now)
        if attempt.verdict is None:
            if now >= attempt.deadline:
                lane.note_stack(attempt)
                self._force(lane, attempt, attempts.TIMED_OUT, now)
            elif attempt.told_at and now - attempt.told_at >= self._graces.cancel:
                tell_forced(attempt.job, self._graces)
                self._force(lane, attempt, attempts.CANCELLED, now)
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
        self._finish(attempt, end_of_verdict(attempt, None))

    def _hand_back(self, lane: Lane, now: float) -> None:
        old = [
            attempt for place, attempt in enumerate(lane.waiting)
            if not attempt.has_told_start
            and now - attempt.pack.received_at
            >= (COMING_SECONDS if place < lane.coming else HANDBACK_SECONDS)
        ]
        for attempt in old:
            self._forget_waiting(attempt)
            self._end_unbegun(attempt, outcomes.returned(Reason.NO_FREE_SLOT))
        if old:
            self._on_room()

    def _hand_back_suspects(self, now: float) -> None:
        for attempt in list(self._suspects.waiting):
            if now - attempt.pack.received_at >= COMING_SECONDS:
                self._forget_waiting(attempt)
                self._end_unbegun(attempt, outcomes.returned(Reason.ON_PROBATION))

    def _hand_back_unknown_types(self) -> None:
        """They came before the ledger knew what this worker runs; it lets them wait a while."""
        unknown = list(self._unknown_types)
        logger.warning(
            "gave back %d jobs of types that this worker does not run, such as %r",
            len(unknown), unknown[0].job["type"],
        )
        for attempt in unknown:
            self._forget_waiting(attempt)
            self._end_unbegun(attempt, outcomes.returned(why_not_run(attempt.job)))
        self._on_room()

    # -- cancel --------------------------------------------------------------------------------

    def cancel(self, user_id: str, job_id: str, run: int, epoch: int) -> None:
        """A person or a policy wants this attempt to end; it may wait, run or not be here."""
        key = (user_id, job_id, run, epoch)
        for lane, attempt in self._all_running():
            if attempt.key() == key:
                self._ask_to_stop(lane, attempt)
                return
        for attempt in self._all_waiting():
            if attempt.key() == key:
                self._forget_waiting(attempt)
                self._end_unbegun(attempt, outcomes.cancelled())
                return
        self._early_cancels.keep(key)

    def _ask_to_stop(self, lane: Lane, attempt: Attempt) -> None:
        if attempt.told_at:
            return
        now = clocks.monotonic()
        handler = attempt.handler
        if handler is not None and not handler.takes_context:
            # It could not look: there is nothing to wait for.
            self._force(lane, attempt, attempts.CANCELLED, now)
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
        await self._until_quiet(SWEEP_SECONDS)  # what ended while the loop stood still may say so
        now = clocks.monotonic()
        for lane, attempt in self._all_running():
            self._force(lane, attempt, attempt.verdict or attempts.STOPPING, now)
        await self._until_quiet(STOP_FORCE_SECONDS)
        for lane, attempt in self._all_running():
            self._give_up(lane, attempt)
        self._is_over = True
        self._sweeper.cancel()
        FAILURES.tell_rest(is_last=True)
        await self._apart.close()
        for lane in self._lanes.values():
            await lane.close()

    def _return_waiting(self, reason: Reason) -> None:
        for attempt in self._all_waiting():
            self._forget_waiting(attempt)
            self._end_unbegun(attempt, outcomes.returned(reason))

    async def _until_quiet(self, seconds: float) -> None:
        if not self.running or seconds <= 0:
            return
        self._quiet.clear()
        with contextlib.suppress(TimeoutError):  # what still runs is dealt with by the caller
            await asyncio.wait_for(self._quiet.wait(), seconds)
