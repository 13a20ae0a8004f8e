"""A policy that does nothing but pass messages on, by a plan, and writes down what it has taken.

Owns the plan and the model of what must come of it. The policy is of the tests alone: the engine
knows nothing of it but that it takes messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from tidemill.streams.envelope import (
    KIND_HEADER,
    NEEDS_HEADER,
    ORIGIN_HEADER,
    POLICY_HEADER,
    VERSION_HEADER,
)
from tidemill.streams.partitioner import partition_of
from tidemill.streams.policies.base import CannotTake, Policy
from tidemill.streams.store.table import AnyTable, Table
from tidemill.streams.turn import Turn

RELAY: Final = "relay"
SINCE: Final = "0.3.0"
Taken = tuple[str, ...]
Plan = list[tuple[str | None, "Plan"]]
"""To whom a message goes on, and what its taker does then. A key is a home key; None: to all."""


class TakenMessages(Table[int, Taken]):
    """By origin: the names of the messages that came from there, in order."""

    def __init__(self) -> None:
        super().__init__(b"r")

    def row_key(self, key: int) -> bytes:
        return b"r%d" % key

    def row_value(self, key: int, value: Taken) -> bytes:
        return orjson.dumps(value)

    def read(self, key: bytes, value: bytes) -> tuple[int, Taken]:
        return int(key[1:]), tuple(orjson.loads(value))


class Relay(Policy):
    """Takes {"name", "plan"}: writes the name down and sends on what the plan says."""

    def __init__(self, number: int) -> None:
        super().__init__(RELAY, SINCE)
        self.taken = TakenMessages()
        self._number = number

    def tables(self) -> tuple[AnyTable, ...]:
        return (self.taken,)

    def on_message(self, turn: Turn, origin: int, body: dict[str, Any]) -> None:
        name: Any = body.get("name")
        plan: Any = body.get("plan")
        if not isinstance(name, str) or not _is_plan(plan):
            raise CannotTake("it has no name and plan")
        self.taken.put(origin, (*(self.taken.get(origin) or ()), name))
        follow(turn, self._number, name, plan)


def _is_plan(plan: object) -> bool:
    return isinstance(plan, list) and all(
        isinstance(step, list) and len(step) == 2
        and (step[0] is None or isinstance(step[0], str)) and _is_plan(step[1])
        for step in plan
    )


def relays(number: int) -> Sequence[Policy]:
    """The policies of a partition that has a relay."""
    return (Relay(number),)


def follow(turn: Turn, number: int, name: str, plan: Plan) -> None:
    """Sends what the plan says, from partition `number`."""
    for index, (key, then) in enumerate(plan):
        body = {"name": f"{name}/{number}.{index}", "plan": then}
        if key is None:
            turn.send_to_all(RELAY, body)
        else:
            turn.send(key, RELAY, body)


def expected(
    number: int, name: str, plan: Plan, partitions: int
) -> Counter[tuple[int, int, str]]:
    """(origin, target, name) of all messages that come of a plan which partition `number` has."""
    found: Counter[tuple[int, int, str]] = Counter()
    for index, (key, then) in enumerate(plan):
        sent = f"{name}/{number}.{index}"
        targets = range(partitions) if key is None else (partition_of(key, partitions),)
        for target in targets:
            found[number, target, sent] += 1
            found += expected(target, sent, then, partitions)
    return found


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it lies in the log."""

    origin: int
    number: int
    target: int
    body: dict[str, Any]


def read_message(
    target: int, value: bytes | None, headers: Sequence[tuple[str, bytes | None]] | None
) -> Message:
    """A record on jobs.internal that must be a message of a relay."""
    found = dict(headers or ())
    assert (found[KIND_HEADER], found[VERSION_HEADER]) == (b"message", b"1")
    assert (found[POLICY_HEADER], found[NEEDS_HEADER]) == (RELAY.encode(), SINCE.encode())
    topic, origin, number = (found[ORIGIN_HEADER] or b"").decode().rsplit("/", 2)
    assert topic.endswith("jobs.internal")
    return Message(int(origin), int(number), target, orjson.loads(value or b""))


def check_order(messages: Sequence[Message]) -> None:
    """The messages of each origin are numbered 1, 2, 3; to each target in rising order."""
    by_origin: dict[int, list[int]] = {}
    by_pair: dict[tuple[int, int], list[int]] = {}
    for message in messages:
        by_origin.setdefault(message.origin, []).append(message.number)
        by_pair.setdefault((message.origin, message.target), []).append(message.number)
    for numbers in by_origin.values():
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
    for numbers in by_pair.values():
        assert numbers == sorted(numbers)


def check_taken(messages: Sequence[Message], taken: dict[int, dict[int, Taken]]) -> None:
    """`taken`: by target, by origin, what the relays wrote down: all of the log, once, in order."""
    sent: dict[int, dict[int, Taken]] = {target: {} for target in taken}
    for message in messages:
        of = sent[message.target]
        of[message.origin] = (*of.get(message.origin, ()), message.body["name"])
    assert taken == sent
