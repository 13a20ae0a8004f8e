"""The worker's process: wires intake, executor, writer, beat and control together.

Owns the start, the stop and their order. Refuses to know anything that its parts know.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from tidemill.agents import clocks, exit_codes, own_streams
from tidemill.agents.logging import (
    REFUSED_EVENT,
    announce_ready,
    configure_logging,
    tell_supervisor,
)
from tidemill.agents.runtime.app import RoleApp, create_app
from tidemill.agents.runtime.failstop import leave_within
from tidemill.agents.runtime.run import WatchdogLimits, new_event_loop, run_through_exits, serve
from tidemill.agents.runtime.threads import call_aside
from tidemill.agents.settings import WorkerSettings, tell_environment
from tidemill.agents.supervisor import former_end_told
from tidemill.agents.topics import TopicRefused
from tidemill.agents.worker.beats import KafkaBeats
from tidemill.agents.worker.control import ControlReader
from tidemill.agents.worker.copies import watch_forks
from tidemill.agents.worker.errors import MissingModule, TidemillError
from tidemill.agents.worker.executor import STOP_FORCE_SECONDS, Executor
from tidemill.agents.worker.failure_log import FAILURES
from tidemill.agents.worker.graces import Graces
from tidemill.agents.worker.heartbeat import HeartbeatThread, Snapshot
from tidemill.agents.worker.intake import Intake
from tidemill.agents.worker.kafka_sink import KafkaSink
from tidemill.agents.worker.pulse import Pulse, open_memory
from tidemill.agents.worker.stand_in import limit_of
from tidemill.agents.worker.start import Loaded, explain_refusal, load_worker, prepare
from tidemill.agents.worker.watch import Watch
from tidemill.agents.worker.writer import OutcomeWriter
from tidemill.schemas.topics import READY_PARTITIONS, Topics
from tidemill.schemas.wire import ControlMessage, QueueSlots

GROUP: Final = "tidemill-worker"  # one consumer group for all workers of an installation
# A job makes some fifty objects and no cycles; handlers may make some, so not much more rarely.
GC_THRESHOLDS: Final = (2_500, 20, 20)
TICK_SECONDS: Final = 0.1  # how fresh the beat's snapshot is
DRAIN_SECONDS_MAX: Final = 1.5  # on a stop: for outcomes that Kafka has not confirmed yet
LEAVE_SECONDS_MAX: Final = 2.0  # on a stop: for the last commit and leaving the group
END_SECONDS_MAX: Final = 4.0  # on a stop: for the last beat and the threads
LINGER_SECONDS: Final = 1.0  # at the very end: for threads of handlers and what they registered
# What is settled and not committed comes again after a kill, and takes slots for attempts that were
# rescued or have ended: nobody waits for those. A commit costs half a millisecond.
COMMIT_SECONDS: Final = 0.1
# A worker that never comes back: its partitions move to others after this long, before its running
# attempts count as lost. The broker takes no less than six seconds.
SESSION_SECONDS: Final = 8.0
# The group waits so long for a member that beats and does not come to share anew: here one whose
# handlers let the loop turn now and then. It restores nothing, so it needs no longer.
REBALANCE_SECONDS: Final = 10.0
GROUP_BEAT_SECONDS: Final = 1.0  # also how late the others learn that they must share anew

logger = logging.getLogger("tidemill.worker")


class Worker:
    """All parts of one worker. Make it on the loop."""

    def __init__(self, settings: WorkerSettings, loaded: Loaded) -> None:
        self._settings = settings
        self._handlers = handlers = loaded.handlers
        self._schedules = loaded.schedules
        self._topics = Topics(settings.topic_prefix)
        self._loop = asyncio.get_running_loop()
        self.queues = loaded.queues
        self._incarnation = clocks.wall_ms()
        self.is_recycling = False
        self._former_end = former_end = former_end_told()
        self.app = worker_app(settings)
        self.app.owner_name = settings.worker_id
        self.app.before_stop = self._before_stop
        self.app.before_revoke = self._before_revoke
        self._sink = KafkaSink(
            settings.kafka, self._topics.outcomes, f"{settings.worker_id}-outcomes"
        )
        self._writer = OutcomeWriter(
            self._sink,
            worker_id=settings.worker_id,
            incarnation=self._incarnation,
            loop=self._loop,
        )
        FAILURES.keeps_traces = settings.traces
        self._pulse = Pulse(open_memory())
        self._executor = Executor(
            handlers,
            self._writer,
            concurrency=settings.concurrency,
            threads=settings.threads,
            processes=settings.processes,
            modules=loaded.plan,
            on_room=self._on_room,
            former_ends={} if former_end is None else {settings.worker_id: former_end},
            pulse=self._pulse,
            graces=Graces(settings.cancel_grace_seconds, settings.child_start_seconds),
        )
        self._intake = Intake(self.app, self._executor, self._writer)
        self._intake.bind(self._topics, self.queues)
        self.app.is_settled = lambda: self._intake.is_settled
        self._watch = Watch(self._words_for_watch(), self._pulse)
        self._beat = HeartbeatThread(
            KafkaBeats(settings.kafka, self._topics.heartbeats, f"{settings.worker_id}-beat"),
            worker_id=settings.worker_id,
            incarnation=self._incarnation,
            first=self._snapshot(),
            pulse=self._pulse,
            on_beat=self._watch.tell,
        )
        self._control = ControlReader(
            settings.kafka, self._topics.control, f"{settings.worker_id}-control", self._on_word
        )
        self._ticker: asyncio.Task[None] | None = None
        #: Called once, when records flow.
        self.on_flow: Callable[[], None] = lambda: None

    def _words_for_watch(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "kafka": settings.kafka, "topic": self._topics.heartbeats,
            "worker_id": settings.worker_id, "types": sorted(self._handlers),
            "stall_seconds": settings.stall_seconds,
            "log_format": settings.log_format, "log_level": settings.log_level,
        }

    def limit_seconds(self) -> float:
        """How long the loop may stand still now."""
        return limit_of(self._settings.stall_seconds, self._pulse.longest_seconds)

    def called_last(self) -> str:
        """Which handlers began last, for a line of the log."""
        return f"; handlers that began last: {self._pulse.latest(sorted(self._handlers))}"

    def begin(self) -> None:
        """Start what runs beside the app."""
        self._watch.start()
        self._beat.start()
        self._control.start()
        self._ticker = self._loop.create_task(self._tick())

    async def _tick(self) -> None:
        is_announced = False
        while True:
            self._beat.update(self._snapshot())
            if not is_announced and self._beat.sent_total and self.app.is_serving:
                is_announced = True
                self.on_flow()
                announce_ready(
                    "worker",
                    worker_id=self._settings.worker_id,
                    queues=list(self.queues),
                    types=sorted(self._handlers),
                )
                # What was made so far stays: the collector need not look at it again.
                gc.collect()
                gc.freeze()
            if self._executor.should_recycle and not self.is_recycling:
                self._recycle()
            await asyncio.sleep(TICK_SECONDS)

    def _is_flowing(self) -> bool:
        return bool(self.app.started) and self.app.is_flowing

    def _recycle(self) -> None:
        self.is_recycling = True
        logger.warning(
            "%d slots are lost to handlers that do not end after their time-out: the worker ends "
            "and must be started again", self._executor.stuck,
        )
        os.kill(os.getpid(), signal.SIGTERM)

    def _snapshot(self) -> Snapshot:
        owned = self._owned()
        executor = self._executor
        return Snapshot(
            queues={
                queue: QueueSlots(
                    kinds=executor.kinds(has_way_in=bool(owned.get(queue))),
                    partitions=owned.get(queue, ()),
                )
                for queue in self.queues
            },
            types=tuple(sorted(self._handlers)),
            running=executor.running,
            is_stopping=executor.is_stopping,
            former_end=self._former_end,
            schedules=self._schedules,
        )

    def _owned(self) -> dict[str, tuple[int, ...]]:
        """Partitions of the ready topics that records come from now."""
        if not self._is_flowing():
            return {}
        queue_of = {self._topics.ready(queue): queue for queue in self.queues}
        owned: dict[str, list[int]] = {}
        for tp in self.app.chunks.assignment():
            queue = queue_of.get(tp.topic)
            if queue is not None:
                owned.setdefault(queue, []).append(tp.partition)
        return {queue: tuple(sorted(numbers)) for queue, numbers in owned.items()}

    def _on_room(self) -> None:
        self._intake.wake()

    def _on_word(self, word: ControlMessage) -> None:
        """On the control reader's thread."""
        self._loop.call_soon_threadsafe(
            self._executor.cancel, word.user_id, word.job_id, word.run, word.epoch
        )

    async def _before_revoke(self) -> None:
        await self._intake.before_revoke()

    async def _before_stop(self) -> None:
        """Finish or give back. Every outcome is durable, or its record stays uncommitted."""
        self._executor.is_stopping = True
        self._beat.update(self._snapshot())
        # 1. What waits is given back, what runs may finish, what is left is given back.
        await self._executor.stop(self._settings.stop_grace_seconds)
        # 2. All of that is durable; the app commits after us what is acked by it.
        self._intake.is_settled = await self._intake.until_settled(DRAIN_SECONDS_MAX)
        if not self._intake.is_settled:
            logger.warning("%d outcomes are not durable; their jobs are rescued",
                           self._writer.pending)

    async def end(self) -> None:
        """After the app has left its group: the last beat, and the threads."""
        if self._ticker is not None:
            self._ticker.cancel()
        await call_aside(self._beat.close)
        await call_aside(self._watch.close)
        self._control.close()
        await self._sink.close()


def worker_app(settings: WorkerSettings) -> RoleApp:
    """The Faust app of a worker; making it needs no broker."""
    return create_app(
        f"{settings.topic_prefix}{GROUP}",
        kafka=settings.kafka,
        partitions=READY_PARTITIONS,
        commit_interval_seconds=COMMIT_SECONDS,
        session_timeout_seconds=SESSION_SECONDS,
        broker_heartbeat_interval=GROUP_BEAT_SECONDS,
        broker_rebalance_timeout=REBALANCE_SECONDS,
        # Static membership needs a name that is the same after a restart; a made-up one would leave
        # its partitions to nobody until the session ends.
        instance_id=settings.worker_id if "worker_id" in settings.model_fields_set else None,
    )


async def _run(settings: WorkerSettings, loaded: Loaded) -> int:
    watch_forks(asyncio.get_running_loop())
    users = own_streams.inheritable()
    worker = Worker(settings, loaded)
    # librdkafka's pipes would be open in every program that a handler starts.
    worker.on_flow = partial(own_streams.keep_from_programs, users)
    worker.begin()
    seconds_max = (
        settings.stop_grace_seconds + STOP_FORCE_SECONDS + DRAIN_SECONDS_MAX + LEAVE_SECONDS_MAX
    )
    limits = WatchdogLimits(loop_seconds=worker.limit_seconds, blame=worker.called_last)
    code = await serve(worker.app, stop_seconds_max=seconds_max, limits=limits)
    if worker.is_recycling:
        code = exit_codes.RECYCLED
    leave_within(END_SECONDS_MAX + LINGER_SECONDS, code)
    await worker.end()
    leave_within(LINGER_SECONDS, code)
    return code


def load_and_bind(settings: WorkerSettings, modules: Sequence[str]) -> Callable[[], int]:
    """Load the modules, check all that they define, and return what runs the worker.

    `modules` are dotted names or paths of .py files. Raises SystemExit, the reason in the log: 78
    when one is not there, 64 when they or the queues cannot be used.
    """
    configure_logging("worker", settings.log_format, settings.log_level)
    clocks.keep()
    # Where each thread stood when native code crashes, or when the stand-in ends this process.
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor, or none
        faulthandler.enable(own_streams.log())
    gc.set_threshold(*GC_THRESHOLDS)
    tell_environment(settings)
    try:
        loaded = load_worker(settings, modules)
    except MissingModule:
        raise SystemExit(exit_codes.CONFIG) from None
    except TidemillError:
        raise SystemExit(exit_codes.MODULES) from None
    return partial(run_loaded, settings, loaded)


def run_loaded(settings: WorkerSettings, loaded: Loaded) -> int:
    """Run a worker until SIGTERM or SIGINT; the exit code.

    0: stopped; 64: Kafka refuses its queues; 70: fail-stop; 75: start me again, slots were lost.
    """
    try:
        prepare(settings, loaded)
    except TopicRefused as error:
        logger.error("%s", explain_refusal(error, loaded.queues))
        tell_supervisor(REFUSED_EVENT)
        return exit_codes.MODULES
    code: int | None = None
    try:
        with (
            # A handler's task that is left over may do anything when it is cancelled.
            contextlib.suppress(SystemExit, KeyboardInterrupt),
            asyncio.Runner(loop_factory=new_event_loop) as runner,
        ):
            code = run_through_exits(runner.get_loop(), _run(settings, loaded))
    except Exception:
        if code is None:
            raise
        # All is done and durable; what a handler has broken hinders only the closing of the loop.
        logger.warning("the worker has stopped, and its loop cannot be closed", exc_info=True)
    return exit_codes.FAILED if code is None else code


def run_worker(settings: WorkerSettings, modules: Sequence[str]) -> int:
    """Load and run in one step; the exit code."""
    own_streams.keep()
    return load_and_bind(settings, modules)()
