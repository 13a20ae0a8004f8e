"""Which partitions go on deciding after a rebalance: none once the process is stopping."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from faust.types import TP

from tidemill.agents.runtime.app import RoleApp, create_app
from tidemill.agents.runtime.store import PartitionStore

PARTITIONS = 2


class Owner:
    """A role that notes what it is told."""

    def __init__(self) -> None:
        self.active: set[int] = set()
        self.asked = asyncio.Event()  # to resume
        self.may_resume = asyncio.Event()

    async def restore(self, partition: int) -> str:
        return f"state of {partition}"

    def positions(self, partition: int, state: str) -> Mapping[tuple[str, int], int]:
        return {}

    async def quiesce(self, partitions: frozenset[int]) -> None:
        self.active -= partitions

    async def resume(self, partitions: frozenset[int]) -> None:
        self.asked.set()
        await self.may_resume.wait()
        self.active |= partitions

    async def revoke(self, partition: int, state: str) -> None:
        self.active.discard(partition)


def make() -> tuple[RoleApp, PartitionStore[str], Owner, set[TP]]:
    app = create_app("store-test", kafka="127.0.0.1:1", partitions=PARTITIONS)
    owner = Owner()
    table = app.partition_table("state", owner, PARTITIONS)
    topic = table.changelog_topic.get_topic_name()
    return app, table.store, owner, {TP(topic, number) for number in range(PARTITIONS)}


async def test_a_rebalance_resumes_what_is_owned() -> None:
    _, store, owner, assigned = make()
    owner.may_resume.set()
    await store.on_rebalance(assigned, set(), assigned)
    assert owner.active == {0, 1}


async def test_a_stop_in_the_middle_of_a_rebalance_leaves_nothing_active() -> None:
    app, store, owner, assigned = make()
    rebalance = asyncio.create_task(store.on_rebalance(assigned, set(), assigned))
    await owner.asked.wait()
    await app.quiesce_for_good()
    owner.may_resume.set()
    await rebalance
    assert owner.active == set()


async def test_a_rebalance_that_begins_after_the_stop_resumes_nothing() -> None:
    app, store, owner, assigned = make()
    await app.quiesce_for_good()
    await store.on_rebalance(assigned, set(), assigned)
    assert not owner.asked.is_set()
