"""The Faust application of every role, with the settings that lose nothing.

Owns the settings and the hooks between Faust, our transport and our table; refuses to know which
topics, agents or states a role has. Creating an app needs no broker.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import faust
import faust.streams
import faust.transport.conductor
from faust.tables import TableManager
from faust.types import TP, AgentT
from yarl import URL

from tidemill.agents.runtime.failstop import fail_stop
from tidemill.agents.runtime.inputs import Gap, InputPolicy
from tidemill.agents.runtime.membership import GroupAssignor
from tidemill.agents.runtime.store import PartitionOwner, PartitionTable
from tidemill.agents.runtime.transport import ChunkConsumer, ChunkTransport

# aiokafka leaves the group for good after this long without a fetch, so it must never come; the
# watchdog does what the limit was for.
MAX_POLL_INTERVAL_SECONDS = 30 * 86_400.0
# A killed process is noticed after this long; a restart under its instance id takes over at once.
SESSION_TIMEOUT_SECONDS = 10.0
HEARTBEAT_INTERVAL_SECONDS = 2.0
# The group waits this long for a member that beats and does not rejoin, such as one that restores.
REBALANCE_TIMEOUT_SECONDS = 300.0
# Faust's recovery ends for good when one of its steps takes longer; the watchdog notices that.
REQUEST_TIMEOUT_SECONDS = 90.0
# How soon partitions that come while a role runs are noticed: one small request each time.
METADATA_SECONDS = 5.0
# Committed offsets are a hint for ledgers; for workers this bounds what runs again after a crash.
COMMIT_INTERVAL_SECONDS = 0.5
# Bytes of one partition in one fetch; a larger record is fetched alone.
FETCH_BYTES_MAX = 1024 * 1024
# Chunks in an agent's queue; InputPolicy bounds each partition long before this.
STREAM_BUFFER_CHUNKS_MAX = 1_000_000

S = TypeVar("S")


class PromptTableManager(TableManager):
    """Faust's own sleeps for a second before it joins the group, for tables that are declared late.
    Ours are declared before the start, and a role that comes back after a kill is waited for."""

    async def on_start(self) -> None:
        if not self.should_stop:
            await self._update_channels()
            await self.recovery.start()


class RoleApp(faust.App):
    """A Faust app that reads chunks, never acks by itself and ends when anything crashes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Topic -> how it is read.
        self.input_policies: dict[str, InputPolicy] = {}
        self._partition_table: PartitionTable | None = None
        #: Bytes that a fetch waits for, within FETCH_WAIT_MS_MAX: 1 is for roles whose next record
        #: somebody waits for.
        self.fetch_bytes_min = 1
        #: Topic -> N, for topics of which partition p belongs to whoever has partition p mod N of
        #: the others, however many partitions there are.
        self.folded_topics: dict[str, int] = {}
        #: Called with each gap after which reading goes on.
        self.on_gap: Callable[[Gap], None] | None = None
        #: Awaited with committed offsets and their notes, and with the partitions: where reading
        #: goes on instead, for a role whose offsets may tell of another store than the one at hand.
        self.other_places: (
            Callable[[Mapping[TP, tuple[int, str]], Collection[TP]], Awaitable[Mapping[TP, int]]]
            | None
        ) = None
        #: Called with the partition counts of the topics that are read, whenever Kafka tells them.
        self.on_counts: Callable[[Mapping[str, int]], None] | None = None
        #: Awaited at a graceful stop while records still flow, for a role that hands work back.
        self.before_stop: Callable[[], Awaitable[None]] | None = None
        #: Awaited when a rebalance begins: before acked offsets are committed, the rest goes stale.
        self.before_revoke: Callable[[], Awaitable[None]] | None = None
        #: For a role whose committed offsets are the truth: its name in the notes beside them, by
        #: which its successors know what may have been delivered before. None: no notes.
        self.owner_name: str | None = None
        #: Asked when partitions are about to go: whether all that was begun is acked.
        self.is_settled: Callable[[], bool] = lambda: False
        #: Commits offsets in place of the consumer, for a role that writes notes beside them. True
        #: when they are committed; False when their records will come again.
        self.commit_offsets: Callable[[Mapping[TP, int]], Awaitable[bool]] | None = None

    # -- what a role declares ------------------------------------------------------------------

    def input_topic(self, name: str, policy: InputPolicy | None = None) -> Any:
        """Declare a topic whose one agent receives chunks."""
        self.input_policies[name] = policy or InputPolicy()
        return self.topic(
            name,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            internal=False,
        )

    def partition_table(
        self, name: str, owner: PartitionOwner[S], partitions: int
    ) -> PartitionTable:
        """Declare the table that ties partition p of all input topics to one process.

        Its changelog topic ``<app id>-<name>-changelog`` must exist with ``partitions`` partitions,
        and stays empty.
        """
        table = PartitionTable(self, name=name, partitions=partitions, default=None)
        table.owner = owner
        self.tables.add(table)
        self._partition_table = table
        return table

    @property
    def chunks(self) -> ChunkConsumer:
        """The consumer: ``hold``, ``release``, ``wake``."""
        consumer = self.consumer
        if not isinstance(consumer, ChunkConsumer):
            raise TypeError(f"the app runs on a foreign consumer: {consumer!r}")
        return consumer

    @property
    def is_flowing(self) -> bool:
        """True when partitions are assigned and restored, and records flow."""
        tables: Any = self.tables
        has_recovered = bool(tables.recovery.completed.is_set())
        return has_recovered and not self.rebalancing and self.chunks.is_placed

    @property
    def misfit(self) -> str | None:
        """Why the group's assignment is not made for what this process reads; None when it is.

        Each topic then has its way in: partitions of it are here, or the group knows another owner.
        """
        return cast(GroupAssignor, self.assignor).misfit

    @property
    def is_serving(self) -> bool:
        """True when records flow from every topic of this process that has partitions here."""
        return bool(self.started) and self.is_flowing and self.misfit is None

    def seen_counts(self, topics: Iterable[str]) -> dict[str, int]:
        """Topic -> its partitions as this process knows them now; topics that it does not know are
        left out."""
        cluster = self.chunks.kafka._client.cluster
        found = {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in topics}
        return {topic: count for topic, count in found.items() if count}

    # -- what the consumer asks ----------------------------------------------------------------

    async def quiesce(self) -> None:
        """A rebalance begins and every chunk handed out is stale: finish what is in flight."""
        if self._partition_table is not None:
            await self._partition_table.store.quiesce()

    async def quiesce_for_good(self) -> None:
        """The same when the process stops: nothing goes on after it."""
        if self._partition_table is not None:
            await self._partition_table.store.quiesce_for_good()

    async def applied_positions(self, partitions: set[int]) -> dict[tuple[str, int], int] | None:
        """Where reading goes on, from the state; None when committed offsets are the truth."""
        if self._partition_table is None:
            return None
        table = self._partition_table
        # One that was added to a folded topic has its position with its home.
        homes = {number % (table.partitions or 1) for number in partitions}
        return table.store.applied_positions(homes)

    # -- fail-stop -----------------------------------------------------------------------------

    def _new_transport(self) -> Any:
        return ChunkTransport(self.conf.broker_consumer, self, loop=self.loop)

    async def _on_agent_error(self, agent: AgentT[Any], exc: BaseException) -> None:
        fail_stop(f"agent {agent.name} raised {exc!r}", exc)

    def _crash(self, reason: BaseException) -> None:
        if isinstance(reason, asyncio.CancelledError):
            super()._crash(reason)
            return
        fail_stop(f"a service crashed: {reason!r}", reason)


def assert_extensions() -> None:
    """Refuse to run without Faust's C extensions: the pure path acks stale records."""
    compiled = (
        getattr(faust.streams, "_CStreamIterator", None),
        getattr(faust.transport.conductor, "ConductorHandler", None),
    )
    if None in compiled:
        raise RuntimeError(
            "Faust's C extensions are missing, and without them records can be lost at a "
            "rebalance. Install a wheel of faust-streaming for this platform (Linux x86_64, macOS "
            "or Windows), or a C compiler and build it; and do not set NO_CYTHON"
        )


def create_app(
    name: str,
    *,
    kafka: str,
    partitions: int,
    instance_id: str | None = None,
    data_dir: str | None = None,
    session_timeout_seconds: float = SESSION_TIMEOUT_SECONDS,
    commit_interval_seconds: float = COMMIT_INTERVAL_SECONDS,
    **settings: Any,
) -> RoleApp:
    """Return the app of a role; ``name`` is also its consumer group.

    ``kafka`` is HOST:PORT[,HOST:PORT]; ``instance_id`` makes the membership static: unique per
    process of the group, the same again after a restart. ``settings`` are passed on to Faust.
    """
    assert_extensions()
    brokers = [URL(f"kafka://{server.strip()}") for server in kafka.split(",") if server.strip()]
    if not brokers:
        raise ValueError("kafka: no broker address given; name at least one HOST:PORT")
    defaults: dict[str, Any] = {
        "broker": brokers,
        "autodiscover": False,
        "broker_commit_interval": commit_interval_seconds,
        "broker_heartbeat_interval": HEARTBEAT_INTERVAL_SECONDS,
        "broker_max_poll_interval": MAX_POLL_INTERVAL_SECONDS,
        "broker_rebalance_timeout": REBALANCE_TIMEOUT_SECONDS,
        "broker_request_timeout": REQUEST_TIMEOUT_SECONDS,
        "broker_session_timeout": session_timeout_seconds,
        "consumer_group_instance_id": instance_id,
        "consumer_metadata_max_age_ms": int(METADATA_SECONDS * 1000),
        "consumer_max_fetch_size": FETCH_BYTES_MAX,
        "cython_optimizations": True,
        "processing_guarantee": "at_least_once",
        "PartitionAssignor": GroupAssignor,
        "TableManager": PromptTableManager,
        "store": "memory://",
        "stream_buffer_maxsize": STREAM_BUFFER_CHUNKS_MAX,
        "stream_recovery_delay": 0.0,
        "stream_wait_empty": False,
        "table_standby_replicas": 0,
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "topic_partitions": partitions,
        "web_enabled": False,
        "web_bind": "127.0.0.1",
        "web_host": "127.0.0.1",
        "web_tables_enabled": False,
        "web_router_enabled": False,
    }
    # Faust makes this folder at its start, by default in the current one; nothing is kept in it.
    defaults["datadir"] = data_dir or str(Path(tempfile.gettempdir()) / f"tidemill-{os.getuid()}")
    return RoleApp(name, **(defaults | settings))
