"""Commits: only of the member that was given the partitions.

Our side of the contract with aiokafka's coordinator; the real one is in
`tests/integration/test_runtime.py`.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import (
    IllegalGenerationError,
    KafkaError,
    NoError,
    NotCoordinatorForGroupError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from faust.types import TP

from tidemill.agents.runtime.commits import commit_as_owner, is_member

WANTED = {TP("events", 0): (7, "a note"), TP("events", 1): (8, "")}


class Coordinator:
    """aiokafka's, as far as a commit asks it."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.error: KafkaError | None = None
        self.asked: list[dict[tuple[str, int], tuple[int, str]]] = []
        self._commit_lock = asyncio.Lock()

    async def ensure_coordinator_known(self) -> None:
        await asyncio.sleep(0)

    async def _do_commit_offsets(self, assignment: object, offsets: Any) -> None:
        self.asked.append({tuple(tp): tuple(found) for tp, found in offsets.items()})
        if self.error is not None:
            raise self.error


async def commit(coordinator: Coordinator) -> bool:
    return await commit_as_owner(SimpleNamespace(_coordinator=coordinator), 3, WANTED)


async def test_the_owner_commits_all_in_one_request() -> None:
    coordinator = Coordinator(3)
    assert await commit(coordinator)
    assert coordinator.asked == [{("events", 0): (7, "a note"), ("events", 1): (8, "")}]


@pytest.mark.parametrize("generation", [-1, 2, 4])
async def test_another_member_commits_nothing(generation: int) -> None:
    coordinator = Coordinator(generation)
    assert not await commit(coordinator)
    assert coordinator.asked == []


async def test_who_becomes_another_member_while_it_waits_commits_nothing() -> None:
    coordinator = Coordinator(3)
    async with coordinator._commit_lock:
        waiting = asyncio.create_task(commit(coordinator))
        for _ in range(5):
            await asyncio.sleep(0)
        coordinator.generation = -1
    assert not await waiting
    assert coordinator.asked == []


@pytest.mark.parametrize("error", [RebalanceInProgressError(), NotCoordinatorForGroupError()])
async def test_a_refusal_is_not_asked_again(error: KafkaError) -> None:
    coordinator = Coordinator(3)
    coordinator.error = error
    assert not await commit(coordinator)
    assert len(coordinator.asked) == 1


class Beating(Coordinator):
    """aiokafka's, as far as a question asks it; a new membership may come meanwhile."""

    group_id, member_id = "g", "m"
    answer: Any = NoError
    joins = False
    questions = 0

    async def _send_req(self, request: Any) -> Any:
        self.questions += 1
        if self.error is not None:
            raise self.error
        if self.joins:
            self.generation, self.member_id = 4, "m4"
        return SimpleNamespace(error_code=self.answer.errno)


async def ask(coordinator: Beating) -> bool:
    return await is_member(SimpleNamespace(kafka=SimpleNamespace(_coordinator=coordinator)), 3)


@pytest.mark.parametrize(
    ("answer", "is_known"),
    [
        (NoError, True), (RebalanceInProgressError, True), (UnknownMemberIdError, False),
        (IllegalGenerationError, False),
    ],
)
async def test_the_group_says_whether_we_are_its_member(answer: Any, is_known: bool) -> None:
    coordinator = Beating(3)
    coordinator.answer = answer
    assert await ask(coordinator) is is_known


@pytest.mark.parametrize("answer", [NoError, UnknownMemberIdError])
async def test_a_question_of_an_old_membership_leaves_the_new_one_alone(answer: Any) -> None:
    coordinator = Beating(3)
    coordinator.answer, coordinator.joins = answer, True
    assert not await ask(coordinator)
    assert (coordinator.generation, coordinator.member_id) == (4, "m4")
    assert not await ask(coordinator)
    assert coordinator.questions == 1


async def test_no_answer_is_no_membership() -> None:
    coordinator = Beating(3)
    coordinator.error = NotCoordinatorForGroupError()
    assert not await ask(coordinator)
