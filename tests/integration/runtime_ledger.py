"""A small ledger over the runtime: what the integration tests run in processes of their own.

It copies each record of two inputs to ``<app>.completed`` exactly once, and keeps per partition a
count and its applied positions in ``<app>-state``: chunks, group commit, one transaction, restore.
Its faults are switched on by the environment: RUNTIME_RAISE_AT raises in an agent at that value.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

from tidemill.agents.runtime.app import RoleApp, create_app
from tidemill.agents.runtime.chunk import Chunk
from tidemill.agents.runtime.errors import AbortableError
from tidemill.agents.runtime.failstop import fail_stop
from tidemill.agents.runtime.inputs import InputPolicy
from tidemill.agents.runtime.restore import read_compacted
from tidemill.agents.runtime.run import run_app
from tidemill.agents.runtime.transaction import TransactionalProducer
from tidemill.schemas.batch_builder import OutGroup, OutRecord

PARTITIONS = 4
GROUP_RECORDS_MAX = 1_500


class Partition:
    """The live state of one partition, its producer and the loop that commits its groups."""

    def __init__(self, app_id: str, number: int, producer: TransactionalProducer) -> None:
        self.app_id = app_id
        self.number = number
        self.producer = producer
        self.applied: dict[str, int] = {}
        self.count = 0
        self.inbox: deque[Chunk] = deque()
        self.arrived = asyncio.Event()
        self.may_commit = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self.committing = asyncio.create_task(self._commit_groups())
        self.committing.add_done_callback(on_loop_end)

    def add(self, chunk: Chunk) -> None:
        self.inbox.append(chunk)
        self.arrived.set()

    async def _commit_groups(self) -> None:
        while True:
            await self.arrived.wait()
            await self.may_commit.wait()
            chunks = self._take_group()
            if not chunks:
                self.arrived.clear()
                continue
            self.idle.clear()
            await self._commit(chunks)
            self.idle.set()

    def _take_group(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        size = 0
        while self.inbox and size < GROUP_RECORDS_MAX:
            chunk = self.inbox.popleft()
            if not chunk.is_stale:
                chunks.append(chunk)
                size += len(chunk)
        return chunks

    async def _commit(self, chunks: list[Chunk]) -> None:
        applied, count, out = dict(self.applied), self.count, list[OutRecord]()
        for chunk in chunks:
            for record in chunk.records:
                if record.offset < applied.get(chunk.topic, 0):
                    continue
                out.append(
                    (f"{self.app_id}.completed", self.number, record.key, record.value, None)
                )
                count += 1
                applied[chunk.topic] = record.offset + 1
        row = json.dumps({"applied": applied, "count": count}).encode()
        out.append((f"{self.app_id}-state", self.number, b"row", row, None))
        while True:
            try:
                await self.producer.commit_group(OutGroup(out))
                break
            except AbortableError:
                continue
        self.applied, self.count = applied, count
        for chunk in chunks:
            chunk.ack()


def on_loop_end(done: asyncio.Task[None]) -> None:
    if not done.cancelled():
        fail_stop("a commit loop ended", done.exception())


class Ledger:
    """Owns partitions for the runtime; see ``PartitionOwner``."""

    def __init__(self, app_id: str, kafka: str) -> None:
        self.app_id = app_id
        self.kafka = kafka
        self.partitions: dict[int, Partition] = {}

    async def restore(self, partition: int) -> Partition:
        producer = TransactionalProducer(self.kafka, f"{self.app_id}-ledger-{partition}")
        await producer.init()
        rows = await asyncio.to_thread(
            lambda: list(read_compacted(self.kafka, f"{self.app_id}-state", partition))
        )
        state = self.partitions[partition] = Partition(self.app_id, partition, producer)
        for batch in rows:
            for _key, value in batch:
                if value is not None:
                    row = json.loads(value)
                    state.applied, state.count = row["applied"], row["count"]
        print(f"restored {partition} {state.count}", flush=True)
        return state

    def positions(self, partition: int, state: Partition) -> Mapping[tuple[str, int], int]:
        return {(topic, partition): offset for topic, offset in state.applied.items()}

    async def quiesce(self, partitions: frozenset[int]) -> None:
        for number in partitions:
            state = self.partitions[number]
            state.may_commit.clear()
            await state.idle.wait()

    async def resume(self, partitions: frozenset[int]) -> None:
        for number in partitions:
            self.partitions[number].may_commit.set()
        print(f"owns {sorted(partitions)}", flush=True)

    async def revoke(self, partition: int, state: Partition) -> None:
        state.committing.cancel()
        del self.partitions[partition]
        await state.producer.close()


def build(app_id: str, kafka: str, instance: str) -> RoleApp:
    app = create_app(
        app_id, kafka=kafka, partitions=PARTITIONS, instance_id=instance, session_timeout_seconds=6
    )
    ledger = Ledger(app_id, kafka)
    table = app.partition_table("ledger", ledger, PARTITIONS)
    raise_at = os.environ.get("RUNTIME_RAISE_AT", "").encode()

    async def take(stream: Any) -> None:
        chunk: Chunk
        async for chunk in stream:
            if raise_at and any(record.value == raise_at for record in chunk.records):
                raise RuntimeError("asked to raise")
            table.store[chunk.partition].add(chunk)

    @app.agent(app.input_topic(f"{app_id}.outcomes", InputPolicy(priority=0)))
    async def outcomes(stream: Any) -> None:
        await take(stream)

    @app.agent(app.input_topic(f"{app_id}.requested", InputPolicy(priority=1)))
    async def requested(stream: Any) -> None:
        await take(stream)

    return app


if __name__ == "__main__":
    sys.exit(run_app(lambda: build(sys.argv[1], sys.argv[2], sys.argv[3])))
