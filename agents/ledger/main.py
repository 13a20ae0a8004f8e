"""The ledger's process: the Faust app, the partitions that it owns, and their restore.

Owns the wiring. Refuses to know what is decided (`streams`) and how records are moved
(`tidemill.agents.runtime`). `build_ledger` needs no broker; `run_ledger` blocks until a signal.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tidemill.agents import zones
from tidemill.agents.ledger.claim import Claim
from tidemill.agents.ledger.clock import LedgerClock
from tidemill.agents.ledger.group_committer import GroupCommitter, end_as_too_old
from tidemill.agents.ledger.metrics import LedgerMetrics, open_door
from tidemill.agents.ledger.runner import PartitionRunner
from tidemill.agents.ledger.workers import WorkerBook, WorkerReader
from tidemill.agents.logging import announce_ready, configure_logging
from tidemill.agents.runtime.app import RoleApp, create_app
from tidemill.agents.runtime.batches_out import CODECS, public_codecs
from tidemill.agents.runtime.chunk import Chunk
from tidemill.agents.runtime.inputs import Gap, InputPolicy
from tidemill.agents.runtime.restore import read_compacted
from tidemill.agents.runtime.run import WatchdogLimits, run_app
from tidemill.agents.runtime.transaction import TransactionalProducer
from tidemill.agents.settings import LedgerSettings
from tidemill.agents.topics import await_topics, check_partitions, end_on_conflict
from tidemill.schemas.native import core
from tidemill.schemas.topics import Topics
from tidemill.streams.decision import NeedsNewer
from tidemill.streams.partition import Partition
from tidemill.streams.partitioner import Partitioner
from tidemill.streams.store.position import input_place
from tidemill.streams.store.state import PartitionState

if TYPE_CHECKING:
    from tidemill.agents.api.main import ApiServer

logger = logging.getLogger("tidemill.ledger")

TABLE: Final = "partitions"  # its empty changelog ties partition p of all inputs to one process
# Transactions that this process has in flight at once: one is decided while another one commits.
PRODUCERS: Final = 2
# Jobs are no cycles: young garbage dies by its count, and old jobs need not be looked at. A large
# group makes some 60,000 objects that are gone at its end; looking for cycles among them each time
# took a twelfth of the processor.
GC_THRESHOLDS: Final = (500_000, 20, 100)


class Ledger:
    """Owns partitions for the runtime: fences, restores, hands over."""

    def __init__(self, settings: LedgerSettings, door: ApiServer | None = None) -> None:
        self._settings = settings
        self._door = door  # that serves our metrics
        self.topics = Topics(settings.topic_prefix)
        self.instance_id = settings.instance_id or f"{socket.gethostname()}-{os.getpid()}"
        self._partitioner = Partitioner(settings.partitions)
        self._clock = LedgerClock()
        self.book = WorkerBook(self._clock)
        self._runners: dict[int, PartitionRunner] = {}
        self._committer = GroupCommitter(self._clock)  # started with the first partition
        self._reader: WorkerReader | None = None
        self._starting = asyncio.Lock()
        self._is_announced = False
        self.app: RoleApp | None = None  # set by `build_ledger`: each needs the other

    def add(self, chunk: Chunk) -> None:
        """A chunk of an input of an owned partition."""
        self._runners[chunk.partition % self._settings.partitions].add(chunk)
        self._committer.wake()

    def tell(self, metrics: LedgerMetrics) -> None:
        """From now on these metrics are about this ledger."""
        metrics.partitions = lambda: len(self._runners)
        metrics.waiting = lambda: sum(one.waiting for one in list(self._runners.values()))
        metrics.unreadable = lambda: self.book.unreadable_total

    async def restore(self, partition: int) -> PartitionRunner:
        """Fence the former owner, then read its rows to the end that stands after the fence."""
        settings, topics = self._settings, self.topics
        async with self._starting:
            if not self._committer.transactional_ids:
                await self._start()
        claim = Claim(settings.kafka, topics, partition, self._committer.transactional_ids)
        await claim.take()
        state = PartitionState(
            dedupe_retention_ms=int(settings.dedupe_retention_seconds * 1000),
            interruptions_max=settings.interruptions_max,
        )
        engine = Partition(
            partition, settings.partitions, topics, state, partitioner=self._partitioner
        )
        engine.ticking.set_zones(zones.zone, zones.version())
        try:
            rows = await asyncio.to_thread(self._load, engine, partition)
        except NeedsNewer as error:
            end_as_too_old(error.of(f"{topics.state}[{partition}]"))
        logger.info(
            "partition %s: %s rows, %s live jobs, %s ended",
            partition, rows, len(state.jobs), len(state.finished),
        )
        runner = PartitionRunner(
            engine, claim, self.book, topics.ledger_inputs, self._passed_to, self._clock
        )
        self._runners[partition] = runner
        self._committer.join(runner)
        return runner

    async def _start(self) -> None:
        """At the first partition; fences a former process of our name."""
        self._start_reader()
        name = f"{self._settings.topic_prefix}tidemill-ledger-{self.instance_id}"
        codecs = public_codecs(self.topics, CODECS[self._settings.public_compression])
        await self._committer.start(
            [
                TransactionalProducer(self._settings.kafka, f"{name}-{number}", codecs=codecs)
                for number in range(PRODUCERS)
            ]
        )

    def _load(self, engine: Partition, partition: int) -> int:
        count = 0
        # The rows are all new objects: collecting garbage between them finds none.
        gc.disable()
        try:
            for batch in read_compacted(self._settings.kafka, self.topics.state, partition):
                for key, value in batch:
                    if key is not None:
                        engine.state.load(key, value)
                count += len(batch)
            self._clock.note(engine.state.clock_ms)
            engine.restored(self._clock.now_ms())
        finally:
            gc.enable()
        gc.freeze()
        return count

    def positions(
        self, partition: int, state: PartitionRunner
    ) -> Mapping[tuple[str, int], int]:
        known = state.partition.state
        # Who has decided anything has read the other inputs from their start.
        begun = dict.fromkeys(self.topics.ledger_inputs, -1) if known.clock_ms else {}
        return {
            input_place(name, partition): offset + 1
            for name, offset in {**begun, **known.applied}.items()
        }

    def note_gap(self, gap: Gap) -> None:
        """An input goes on behind a gap."""
        self._runners[gap.partition % self._settings.partitions].note_gap(gap)
        self._committer.wake()

    async def quiesce(self, partitions: frozenset[int]) -> None:
        runners = [self._runners[number] for number in partitions]
        for runner in runners:
            runner.is_active = False
        await self._committer.quiesce(runners)
        await asyncio.gather(*(runner.claim.let_go() for runner in runners))

    async def resume(self, partitions: frozenset[int]) -> None:
        await asyncio.gather(*(self._runners[number].claim.renew() for number in partitions))
        for number in partitions:
            self._runners[number].is_active = True
        self._wake_all()
        owned = sorted(partitions)
        if self.app is not None and self.app.misfit is not None:
            logger.info("owns partitions %s for now: %s", owned, self.app.misfit)
            return
        if owned:
            logger.info("owns partitions %s", owned)
        else:
            logger.info(
                "standby: other processes own all %s partitions; this one takes over when one of "
                "them ends", self._settings.partitions,
            )
        if not self._is_announced:
            self._is_announced = True
            told = {} if self._door is None else {"metrics": self._door.port}
            announce_ready(
                "ledger", partitions=owned, is_standby=not owned, core=str(core), **told
            )

    async def revoke(self, partition: int, state: PartitionRunner) -> None:
        del self._runners[partition]
        self._committer.leave(state)
        await state.claim.close()

    def _passed_to(self, topic: str, partition: int) -> int | None:
        return None if self.app is None else self.app.chunks.passed_to(topic, partition)

    def _start_reader(self) -> None:
        loop = asyncio.get_running_loop()

        def on_change() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._wake_all)

        self._reader = WorkerReader(self._settings.kafka, self.topics, self.book, on_change)
        self._reader.start()

    def _wake_all(self) -> None:
        for runner in self._runners.values():
            runner.wake()
        self._committer.wake()


def build_ledger(
    settings: LedgerSettings, metrics: LedgerMetrics | None = None, door: ApiServer | None = None
) -> RoleApp:
    """The Faust app of the ledger; importing and building it needs no broker."""
    ledger = Ledger(settings, door)
    if metrics is not None:
        ledger.tell(metrics)
    app = create_app(
        f"{settings.topic_prefix}tidemill-ledger",
        kafka=settings.kafka,
        partitions=settings.partitions,
        instance_id=ledger.instance_id,
    )
    ledger.app = app
    for topic in ledger.topics.folded:
        app.folded_topics[topic] = settings.partitions
    app.on_counts = partial(end_on_conflict, ledger.topics, settings.partitions)
    app.on_gap = ledger.note_gap
    app.partition_table(TABLE, ledger, settings.partitions)

    async def take(stream: Any) -> None:
        chunk: Chunk
        async for chunk in stream:
            ledger.add(chunk)

    is_fatal = not settings.accept_gaps
    for priority, topic in enumerate(ledger.topics.ledger_inputs):
        source = app.input_topic(topic, InputPolicy(priority=priority, is_gap_fatal=is_fatal))
        app.agent(source, name=f"take-{topic}")(take)
    return app


def run_ledger(settings: LedgerSettings) -> int:
    """Run the ledger until SIGTERM or SIGINT; returns the exit code."""
    configure_logging("ledger", settings.log_format, settings.log_level)
    gc.set_threshold(*GC_THRESHOLDS)
    topics = Topics(settings.topic_prefix)
    check_partitions(settings.kafka, topics, settings.partitions)
    fixed = [spec.name for spec in topics.fixed()]
    await_topics(settings.kafka, topics, fixed, logger.warning)
    check_partitions(settings.kafka, topics, settings.partitions)
    limits = WatchdogLimits(loop_seconds=lambda: settings.stall_seconds)
    if settings.metrics_port is None:
        return run_app(lambda: build_ledger(settings), limits=limits)
    metrics = LedgerMetrics()
    door = open_door(metrics, settings.metrics_host, settings.metrics_port)
    try:
        return run_app(lambda: build_ledger(settings, metrics, door), limits=limits)
    finally:
        door.stop()
