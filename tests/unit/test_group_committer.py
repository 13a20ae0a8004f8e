"""The group commit: two transactions in turn, and each partition in one group at a time.

Our side of the contract with the producers and the partitions: both are stand-ins that note what
happens and wait until a test lets them go on. The real ones commit in tests/integration and
tests/chaos.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from tidemill.agents import exit_codes
from tidemill.agents.ledger import group_committer as committer_
from tidemill.agents.ledger.clock import LedgerClock
from tidemill.agents.ledger.group_committer import (
    GROUP_EVERY_SECONDS_MAX,
    GROUP_EVERY_SECONDS_MIN,
    SHARED_OUT_RECORDS,
    GroupCommitter,
)
from tidemill.agents.ledger.runner import PartitionRunner
from tidemill.agents.runtime.errors import AbortableError
from tidemill.agents.runtime.transaction import TransactionalProducer
from tidemill.schemas.batch_builder import OutGroup
from tidemill.streams.decision import NeedsNewer

Log = list[tuple[str, str]]


class HeldProducer:
    """Commits when it is let go, or aborts."""

    def __init__(self, name: str, log: Log) -> None:
        self.transactional_id = name
        self.is_held = False
        self.error: Exception | None = None
        self.refusal: Exception | None = None
        self.records: list[str] = []
        self._log = log
        self._released = asyncio.Event()

    async def init(self) -> None:
        self._log.append(("init", self.transactional_id))


    async def send(self, group: OutGroup) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.records = [topic for topic, *_ in group]

    async def commit(self) -> None:
        if self.is_held:
            await self._released.wait()
        if self.error is not None:
            raise self.error
        self._log.append(("commit", self.transactional_id))

    def let_go(self) -> None:
        self._released.set()


class Wanting:
    """A partition that has something to decide while it wants to."""

    def __init__(self, name: str, log: Log) -> None:
        self.name = name
        self.is_active = True
        self.wants = False
        self.waiting = 0
        self.writes = 1  # records
        self._log = log

    def due_at(self) -> float:
        return 0.0 if self.wants else float("inf")

    def decide(self, records_max: int, bytes_max: int) -> tuple[int, OutGroup]:
        self.wants = False
        self._log.append(("decide", self.name))
        return 1, OutGroup([(self.name, 0, None, b"1", None)] * self.writes)

    def commit(self) -> None:
        self._log.append(("settle", self.name))

    def ack(self) -> None:
        self._log.append(("ack", self.name))

    def rollback(self) -> None:
        self._log.append(("undo", self.name))


class Bench:
    """A committer with two producers and the partitions a, b, c, d."""

    def __init__(self) -> None:
        self.log: Log = []
        self.producers = [HeldProducer(name, self.log) for name in ("first", "second")]
        self.committer = GroupCommitter(LedgerClock())
        self.partitions = {name: Wanting(name, self.log) for name in "abcd"}
        for partition in self.partitions.values():
            self.committer.join(cast("PartitionRunner", partition))

    def want(self, names: str, waiting: int = 0) -> None:
        for name in names:
            self.partitions[name].wants = True
            self.partitions[name].waiting = waiting
        self.committer.wake()

    async def hold_first(self, names: str) -> None:
        """These have decided, and their transaction does not end before `let_go`."""
        self.producers[0].is_held = True
        self.want(names)
        await self.until(lambda: self.happened("decide") == names)

    def happened(self, what: str) -> str:
        return "".join(name for kind, name in self.log if kind == what)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110  # the stand-ins give no signal
                await asyncio.sleep(0)

    async def turns(self) -> None:
        """Long enough for everything that nobody holds up."""
        for _ in range(50):
            await asyncio.sleep(0)


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    await made.committer.start(cast("list[TransactionalProducer]", made.producers))
    yield made
    for task in list(made.committer._tasks):
        task.cancel()


async def test_a_quiet_group_takes_all_that_are_due_into_one_transaction() -> None:
    async with bench() as here:
        here.want("ac")
        await here.until(lambda: here.happened("ack") == "ac")
        assert here.happened("commit") == "first"
        assert [kind for kind, _ in here.log[2:]] == [
            "decide", "decide", "commit", "settle", "settle", "ack", "ack"
        ]


async def test_producers_take_turns() -> None:
    async with bench() as here:
        for number, name in enumerate("abc", 1):
            here.want(name)
            await here.until(lambda count=number: len(here.happened("ack")) == count)  # type: ignore[misc]
        commits = [name for kind, name in here.log if kind == "commit"]
        assert commits == ["first", "second", "first"]


async def test_a_group_lets_some_time_pass_after_the_last_one_unless_much_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for bound in ("GROUP_EVERY_SECONDS_MIN", "GROUP_EVERY_SECONDS_MAX"):
        monkeypatch.setattr(committer_, bound, 60.0)
    async with bench() as here:
        here.want("a")
        await here.until(lambda: here.happened("ack") == "a")
        here.want("b")
        await here.turns()
        assert here.happened("decide") == "a"
        here.want("c", waiting=SHARED_OUT_RECORDS)
        await here.until(lambda: sorted(here.happened("ack")) == list("abc"))


async def test_where_transactions_take_longer_groups_are_rarer() -> None:
    async with bench() as here:
        pauses = []
        for name in "ab":
            here.want(name)
            await here.until(lambda name=name: name in here.happened("ack"))  # type: ignore[misc]
            pauses.append(here.committer.pause_seconds)
            here.producers[1].is_held = True
            asyncio.get_running_loop().call_later(0.2, here.producers[1].let_go)
        assert pauses == [GROUP_EVERY_SECONDS_MIN, GROUP_EVERY_SECONDS_MAX]


async def test_one_group_is_decided_while_another_one_commits() -> None:
    async with bench() as here:
        await here.hold_first("ab")
        here.want("c")
        await here.until(lambda: here.happened("ack") == "c")
        assert here.happened("commit") == "second"
        here.producers[0].let_go()
        await here.until(lambda: here.happened("ack") == "cab")


async def test_a_partition_decides_nothing_while_its_group_commits() -> None:
    async with bench() as here:
        await here.hold_first("a")
        here.want("ab")
        await here.until(lambda: here.happened("ack") == "b")
        await here.turns()
        assert here.happened("decide") == "ab"
        here.producers[0].let_go()
        await here.until(lambda: here.happened("ack") == "baa")


async def test_with_much_to_do_each_transaction_takes_its_share() -> None:
    async with bench() as here:
        for producer in here.producers:
            producer.is_held = True
        here.want("abcd", waiting=SHARED_OUT_RECORDS)
        await here.until(lambda: all(producer.records for producer in here.producers))
        assert [producer.records for producer in here.producers] == [["a", "b"], ["c", "d"]]
        for producer in here.producers:
            producer.let_go()
        await here.until(lambda: sorted(here.happened("ack")) == list("abcd"))


async def test_an_abort_undoes_its_own_group_and_it_is_decided_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(committer_, "ABORT_PAUSE_SECONDS", 0.0)
    async with bench() as here:
        here.producers[0].error = AbortableError("the broker said so")
        await here.hold_first("a")
        here.want("b")
        await here.until(lambda: here.happened("ack") == "b")
        here.producers[0].let_go()
        await here.until(lambda: here.happened("undo") == "a")
        here.producers[0].error = None
        here.want("a")
        await here.until(lambda: here.happened("ack") == "ba")
        assert here.happened("settle") == "ba"


async def test_a_group_whose_records_are_refused_is_undone_and_decided_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(committer_, "ABORT_PAUSE_SECONDS", 0.0)
    async with bench() as here:
        for producer in here.producers:
            producer.refusal = AbortableError("the topic takes no such batch")
        here.want("ab")
        await here.until(lambda: here.happened("undo") == "ab")
        assert here.happened("commit") == ""
        for producer in here.producers:
            producer.refusal = None
        here.want("ab")
        await here.until(lambda: sorted(here.happened("ack")) == ["a", "b"])


async def test_a_group_that_leads_to_nothing_is_acked_without_a_transaction() -> None:
    async with bench() as here:
        here.partitions["a"].writes = 0
        here.want("a")
        await here.until(lambda: here.happened("ack") == "a")
        assert here.happened("commit") == ""


async def test_a_hand_over_waits_for_its_own_partitions_only() -> None:
    async with bench() as here:
        await here.hold_first("a")
        leaving, staying = here.partitions["a"], here.partitions["b"]
        staying.is_active = leaving.is_active = False
        async with asyncio.timeout(5):
            await here.committer.quiesce({cast("PartitionRunner", staying)})
        handed_over = asyncio.create_task(
            here.committer.quiesce({cast("PartitionRunner", leaving)})
        )
        await here.turns()
        assert not handed_over.done()
        here.want("ab")
        here.producers[0].let_go()
        async with asyncio.timeout(5):
            await handed_over
        await here.turns()
        assert here.happened("ack") == "a"  # who is not active joins no new group


async def test_a_record_that_needs_a_newer_version_ends_the_process_with_its_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends: list[tuple[str, int]] = []
    monkeypatch.setattr(
        committer_, "fail_stop", lambda reason, *_, code=0: ends.append((reason, code))
    )
    async with bench() as here:
        partition = here.partitions["a"]

        def decide(records_max: int, bytes_max: int) -> tuple[int, OutGroup]:
            raise NeedsNewer(
                "jobs.internal[2]@7 is a forward of the kind 'schedule'", "0.9.0"
            )

        monkeypatch.setattr(partition, "decide", decide)
        here.want("a")
        await here.until(lambda: bool(ends))
    ((reason, code), *_) = ends
    assert code == exit_codes.TOO_OLD
    assert "jobs.internal[2]@7" in reason
    assert "Tidemill 0.9.0 or later" in reason
