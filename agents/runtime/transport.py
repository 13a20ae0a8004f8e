"""A Faust transport that hands whole chunks to agents, in the process's own event loop.

Owns the group membership, the fetch, the order of reading between topics, backpressure, offset
commits and seeks; refuses to decode a record or to know what an agent does with it. There is no
consumer thread: aiokafka's fetcher runs in the main loop, so a record is two wake-ups away from the
agent, and a blocked main loop shows as missing heartbeats instead of hiding behind a live thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

import aiokafka
import aiokafka.abc
from aiokafka.consumer.fetcher import FetchError
from aiokafka.errors import (
    ConsumerStoppedError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from aiokafka.structs import TopicPartition
from faust.tables.recovery import RebalanceAgain
from faust.transport.consumer import Consumer as FaustConsumer
from faust.transport.consumer import ensure_TPset
from faust.transport.drivers.aiokafka import Transport as AIOKafkaTransport
from faust.transport.drivers.aiokafka import server_list
from faust.types import TP

from tidemill.agents import clocks
from tidemill.agents.runtime.batches import readable_batches
from tidemill.agents.runtime.commits import commit_as_owner
from tidemill.agents.runtime.errors import FatalError
from tidemill.agents.runtime.failstop import fail_stop
from tidemill.agents.runtime.handover import Handovers
from tidemill.agents.runtime.inputs import Gap, InputPartition, InputPolicy
from tidemill.agents.runtime.membership import FitKeeper, Subscriptions
from tidemill.agents.runtime.rebalances import RebalanceListener

logger = logging.getLogger("tidemill.runtime")

# How long the broker may hold a fetch that finds nothing: also the longest that a resumed partition
# waits for the fetch in flight, so it is short.
FETCH_WAIT_MS_MAX = 200
# A pass of the pump hands out at most this much of one partition before others and the loop get on.
PASS_CHUNKS_MAX = 4
# A commit before a rebalance that takes longer is given up; the group waits for this member.
REVOKE_COMMIT_SECONDS_MAX = 5.0


class ChunkConsumer(FaustConsumer):
    """Faust's consumer over an aiokafka consumer of the same loop.

    Three offsets per partition: *fetched* (aiokafka's position), *delivered* (handed to the agent
    in a chunk) and *committed* (the contiguous acked prefix: a hint for ledgers, the truth for
    workers).
    """

    consumer_stopped_errors: ClassVar[tuple[type[BaseException], ...]] = (ConsumerStoppedError,)

    #: The RoleApp; naming its type here would close a circle of imports.
    app: Any
    _kafka: aiokafka.AIOKafkaConsumer | None = None
    #: How often partitions were assigned. After each, all that was not committed comes again.
    assignments = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._inputs: dict[TP, InputPartition] = {}
        self._in_order: list[InputPartition] = []
        self.handovers = Handovers(self.app.owner_name)
        self._waiter: asyncio.Future[None] | None = None
        self._is_revoked = True  # nothing is assigned yet, or a rebalance has begun
        #: True when reading goes on from the right place in all that is assigned at present.
        #: Faust's own flags may tell the end of a rebalance during the next one.
        self.is_placed = False
        self._listener = RebalanceListener(self)
        self._fit: FitKeeper | None = None
        #: Monotonic instant of the last pass of the pump; the watchdog reads it.
        self.pumped_at = clocks.monotonic()
        #: Monotonic instant since when acked offsets wait for a commit that succeeds, or None.
        self.uncommitted_since: float | None = None

    @property
    def kafka(self) -> Any:
        """The aiokafka consumer; its private parts are untyped and used, hence the exact pin."""
        if self._kafka is None:
            raise ConsumerStoppedError()
        return self._kafka

    # -- life ----------------------------------------------------------------------------------

    async def on_start(self) -> None:
        self._kafka = self._new_kafka_consumer()
        await self._kafka.start()
        self._fit = FitKeeper(self.app, self._kafka)

    async def on_stop(self) -> None:
        """Commit what is acked and leave; nothing unacked is waited for."""
        if self._fit is not None:
            self._fit.stop()
        await super().on_stop()
        if self._kafka is not None:
            await self.let_go()
            await self._kafka.stop()

    def _new_kafka_consumer(self) -> aiokafka.AIOKafkaConsumer:
        conf = self.app.conf
        transport = cast(Any, self.transport)
        made = aiokafka.AIOKafkaConsumer(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            bootstrap_servers=server_list(transport.url, transport.default_port),
            partition_assignment_strategy=[cast(Any, self.app.assignor)],
            enable_auto_commit=False,
            # We decide about missing and vanished offsets ourselves, in perform_seek and _collect.
            auto_offset_reset="none",
            max_poll_interval_ms=int((conf.broker_max_poll_interval or 0) * 1000),
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_min_bytes=self.app.fetch_bytes_min,
            fetch_max_wait_ms=FETCH_WAIT_MS_MAX,
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            check_crcs=False,  # readable_batches checks them
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            isolation_level="read_committed",
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
        )
        made._subscription = Subscriptions()
        return made

    async def subscribe(self, topics: Iterable[str]) -> None:
        self.kafka.subscribe(topics=set(topics), listener=self._listener)

    # -- the pump ------------------------------------------------------------------------------

    async def _drain_messages(self, fetcher: Any) -> None:
        """Move fetched batches to the agents for as long as the service runs."""
        try:
            while not (self.should_stop or fetcher.should_stop):
                await self._pump_once()
        except ConsumerStoppedError:
            if not self.app.should_stop:
                fail_stop("the Kafka consumer stopped by itself")
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  # the process must end
            fail_stop(f"reading from Kafka failed: {error!r}", error)

    async def _pump_once(self) -> None:
        if not self.flow_active:
            await self.wait(cast(Any, self.can_resume_flow))
            return
        self.pumped_at = clocks.monotonic()
        self._collect()
        if self._deliver():
            # Let the agents and the fetcher run before the next pass.
            await asyncio.sleep(0)
        else:
            await self._wait_for_work()

    async def _wait_for_work(self) -> None:
        """Wait for a fetch, an ack that makes room, or a wake-up from outside."""
        fetcher = self.kafka._fetcher
        self.kafka._coordinator.check_errors()
        if any(tp in self._inputs for tp in fetcher._records):
            return
        waiter = self._waiter = fetcher._create_fetch_waiter()
        try:
            with fetcher._subscriptions.fetch_context():
                await waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Make the pump look again: room was made, or a credit changed."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def on_ack(self) -> None:
        """Called by a chunk after each ack that counted."""
        if self.uncommitted_since is None:
            self.uncommitted_since = clocks.monotonic()
        self.wake()

    def _collect(self) -> None:
        """Take what aiokafka has fetched, so that its next fetch covers every partition again."""
        fetcher = self.kafka._fetcher
        if not fetcher._records or fetcher._subscriptions.reassignment_in_progress:
            return
        collected = False
        for tp in list(fetcher._records):
            entry = self._inputs.get(tp)
            if entry is None or entry.is_full:
                continue
            result = fetcher._records.pop(tp)
            collected = True
            if type(result) is FetchError:
                self._on_fetch_error(entry, result)
                continue
            state = result._assignment.state_value(tp) if result._assignment.active else None
            records = result._partition_records
            if state is None or records is None or state.position != records.next_fetch_offset:
                continue
            batches, next_offset = readable_batches(records)
            state.consumed_to(next_offset)
            entry.buffer.add(batches)
        if collected:
            fetcher._notify(fetcher._wait_consume_future)

    def _deliver(self) -> bool:
        """Hand out what there is room for, topics of higher priority first."""
        delivered = False
        for entry in self._in_order:
            if entry.buffer:
                for _ in range(PASS_CHUNKS_MAX):
                    if not entry.take(self.on_ack):
                        break
                    delivered = True
            self._hold_fetch_when_full(entry)
        return delivered

    def _hold_fetch_when_full(self, entry: InputPartition) -> None:
        """Leave a full partition out of the fetches; the others go on without it.

        What comes back in has to wait for the fetch in flight, so a partition stays in while a
        little waits: a worker whose slots were all taken for a moment would else get its next jobs
        in bursts, each after the broker has held a fetch that finds nothing.
        """
        state = self._state_of(entry.tp)
        if state is None:
            return
        if entry.is_full and not state.paused:
            state.pause()
        elif not entry.is_full and state.paused:
            state.resume()

    def _state_of(self, tp: TP) -> Any:
        subscription = self.kafka._subscription.subscription
        assignment = None if subscription is None else subscription.assignment
        if assignment is None or not assignment.active or tp not in assignment.tps:
            return None
        return assignment.state_value(tp)

    def _on_fetch_error(self, entry: InputPartition, failure: FetchError) -> None:
        error = failure._error
        if isinstance(error, NoOffsetForPartitionError):
            return  # of an assignment that is over: here every position is sought
        if not isinstance(error, OffsetOutOfRangeError):
            fail_stop(f"fetching {entry.tp.topic}-{entry.tp.partition} failed: {error!r}", error)
        logger.error("a gap in %s-%s: looking where its log begins", *entry.tp)
        # Reading begins anew, of all partitions, from where each must go on.
        self.app.assignor.ask_anew()
        self.kafka._coordinator.request_rejoin()

    def _position_of(self, tp: TP) -> int | None:
        state = self._state_of(tp)
        return state.position if state is not None and state.has_valid_position else None

    def passed_to(self, topic: str, partition: int) -> int | None:
        """The offset below which everything was handed out and acked; None while something is out.

        It passes markers of transactions, which are no records and are never acked.
        """
        entry = self._inputs.get(TP(topic, partition))
        if entry is None or entry.buffer or entry.tracker.unacked_records:
            return None
        return self._position_of(entry.tp)

    # -- flow from outside ---------------------------------------------------------------------

    def hold(self, topic: str, partition: int) -> None:
        """Hand out nothing more of one partition until ``release``; other partitions go on."""
        entry = self._inputs.get(TP(topic, partition))
        if entry is not None:
            entry.held = True

    def release(self, topic: str, partition: int) -> None:
        entry = self._inputs.get(TP(topic, partition))
        if entry is not None and entry.held:
            entry.held = False
            self.wake()

    # -- rebalance -----------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Hand over: after this, nothing that was handed out before may be decided."""
        # 1. Hand out nothing more.
        self.stop_flow()
        had_inputs = bool(self._inputs)
        if had_inputs and self.app.before_revoke is not None:
            await self.app.before_revoke()
        # 2. Commit what is acked by now; what is acked later comes again.
        try:
            async with asyncio.timeout(REVOKE_COMMIT_SECONDS_MAX):
                await self.let_go()
        except TimeoutError:
            logger.warning("offsets not committed before a rebalance, their records come again")
        # 3. Make every chunk that is still queued or waiting stale. This comes before the owner
        #    finishes, or it could drop one chunk and decide on the one behind it.
        for entry in self._inputs.values():
            entry.clear()
        self._inputs.clear()
        self._in_order.clear()
        self.uncommitted_since = None
        # 4. Let the owner finish what it is committing.
        if had_inputs:
            await self.app.quiesce()
        # 5. Faust empties the agents' queues and goes on with the rebalance.
        await super().on_partitions_revoked(revoked)

    async def perform_seek(self) -> None:
        """Set every input to where reading goes on; Faust awaits this before records flow."""
        assignment = self.assignments
        # Faust asks a moment after an assignment. Nothing may be read of one that is over.
        self._go_on_with(assignment)
        policies = self.app.input_policies
        wanted = [tp for tp in self.assignment() if tp.topic in policies]
        if not wanted:
            self.is_placed = True
            return
        starts = cast(dict[TP, int], await self.kafka.beginning_offsets(wanted))
        ends = cast(dict[TP, int], await self.kafka.end_offsets(wanted))
        applied = await self.app.applied_positions({tp.partition for tp in wanted})
        if applied is None:
            positions = await self.handovers.find(self.kafka, wanted, starts=starts, ends=ends)
            await self.handovers.take(self.kafka, self.app.consumer_generation_id)
            if self.app.other_places is not None:
                positions |= await self.app.other_places(self.handovers.committed, wanted)
        else:
            positions = {tp: applied[tp] for tp in wanted if tp in applied}
        # What was asked for has no position in the next assignment.
        self._go_on_with(assignment)
        for tp in wanted:
            positions[tp] = self._checked(tp, positions.get(tp), starts[tp], ends[tp])
            self.kafka.seek(TopicPartition(tp.topic, tp.partition), positions[tp])
            self.kafka._fetcher._records.pop(tp, None)
        self.kafka.resume(*(TopicPartition(tp.topic, tp.partition) for tp in wanted))
        # The pump may be running already; it sees a partition only from here on.
        self._inputs = {tp: self._new_input(tp, policies[tp.topic]) for tp in wanted}
        for tp, entry in self._inputs.items():
            entry.began_at = positions[tp]
            # An owner that was killed may have applied all and committed nothing: without a new
            # record nobody would, and the group would seem to lag for ever, or to have a gap.
            if applied is not None:
                entry.tracker.resume_at(positions[tp])
        self._in_order = sorted(
            self._inputs.values(), key=lambda entry: (entry.policy.priority, entry.tp)
        )
        self.is_placed = True
        self.wake()

    def _go_on_with(self, assignment: int) -> None:
        """Faust waits for the next recovery when the next rebalance has begun."""
        if self._is_revoked or self.assignments != assignment:
            raise RebalanceAgain

    def _checked(self, tp: TP, known: int | None, start: int, end: int) -> int:
        """Where reading goes on; a gap is told. `known` None: nothing was read here before."""
        gap = Gap(tp.topic, tp.partition, known or 0, start, end)
        if not gap.is_there or (known is None and self.app.on_gap is None):
            return start if known is None else known
        if known is None:
            logger.error("%s; going on from %s", gap, start)
        else:
            self.app.input_policies[tp.topic].end_at_gap(gap)
        if self.app.on_gap is not None:
            self.app.on_gap(gap)
        return start

    def _new_input(self, tp: TP, policy: InputPolicy) -> InputPartition:
        channels = self.app.topics._topic_name_index[tp.topic]
        if len(channels) != 1:
            fail_stop(f"topic {tp.topic} must have exactly one agent, it has {len(channels)}")
        return InputPartition(tp, policy, next(iter(channels)).queue)

    # -- commits -------------------------------------------------------------------------------

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit the contiguous acked prefix of every partition that has a new one."""
        offsets: dict[TP, int] = {}
        for tp, entry in self._inputs.items():
            offset = entry.committable(self.passed_to(tp.topic, tp.partition))
            if offset is not None:
                offsets[tp] = offset
        if not offsets:
            self.uncommitted_since = None
            return False
        started_at = clocks.monotonic()
        if not await self._commit(offsets):
            return False
        for tp, offset in offsets.items():
            found = self._inputs.get(tp)
            if found is not None:
                found.tracker.on_committed(offset)
        if self.uncommitted_since is not None and self.uncommitted_since <= started_at:
            self.uncommitted_since = None
        return True

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        if self.app.commit_offsets is not None:
            return bool(await self.app.commit_offsets(offsets))
        return await commit_as_owner(
            self.kafka,
            self.app.consumer_generation_id,
            {tp: (offset, self.handovers.note) for tp, offset in offsets.items()},
        )

    async def let_go(self) -> None:
        """The last commit before partitions go; it says where nothing behind it was begun."""
        await self.force_commit()
        if self.app.is_settled():
            known = self._inputs.items()
            places = {tp: entry.position for tp, entry in known if not entry.tracker.has_gap}
            await self.handovers.let_go(self.kafka, self.app.consumer_generation_id, places)

    async def on_task_error(self, exc: BaseException) -> None:
        """Never commit because something failed."""

    # -- what Faust asks of a consumer ---------------------------------------------------------

    def assignment(self) -> set[TP]:
        return ensure_TPset(self.kafka.assignment())

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:
        raise FatalError("records leave this consumer as chunks")

    def _to_message(self, tp: TP, record: Any) -> Any:
        raise FatalError("records leave this consumer as chunks")

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return cast(TP, TopicPartition(topic, partition))

    async def seek_to_committed(self) -> Mapping[TP, int]:
        return {}

    async def position(self, tp: TP) -> int | None:
        return cast(int, await self.kafka.position(tp))

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        for tp, offset in partitions.items():
            self.kafka.seek(TopicPartition(tp.topic, tp.partition), offset)
            self.kafka._fetcher._records.pop(tp, None)

    async def _seek(self, partition: TP, offset: int) -> None:
        self.kafka.seek(TopicPartition(partition.topic, partition.partition), offset)

    def highwater(self, tp: TP) -> int:
        return cast(int, self.kafka.highwater(tp))

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return cast(Mapping[TP, int], await self.kafka.beginning_offsets(partitions))

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        found = cast(Mapping[TP, int], await self.kafka.end_offsets(partitions))
        for tp, offset in found.items():
            if offset and self._is_changelog_tp(tp):
                fail_stop(
                    f"the changelog {tp.topic}-{tp.partition} must be empty, it ends at {offset}: "
                    "the state lives in a topic of its own; use an application id of its own"
                )
        return found

    def topic_partitions(self, topic: str) -> int | None:
        return cast("int | None", self.kafka._coordinator._metadata_snapshot.get(topic))

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> Any:
        raise FatalError("the caller names the partition of every record it sends")

    async def create_topic(self, topic: str, *args: Any, **kwargs: Any) -> None:
        """Topics are created by ``tidemill topics apply``, never by an app."""

    def close(self) -> None:
        """A rebalance while stopping: nothing to do, ``on_stop`` closes the client."""


class ChunkTransport(AIOKafkaTransport):
    """Faust's aiokafka transport with our consumer in it."""

    Consumer: ClassVar[Any] = ChunkConsumer
