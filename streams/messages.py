"""Messages between partitions: a policy tells itself something in the partition of another key.

Owns sending, the bounds of it, and handing a message to the policy that takes it. Refuses to know
what a message means, and how it travels (`tidemill.streams.envelope`).

A message is written in the transaction of the decision that caused it, and the partition that it is
for takes it as one more input: once, in the order in which one partition sent to another, through
any crash. A partition may write to itself; that message too is taken in a later group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from tidemill.schemas.codec import Refusal
from tidemill.schemas.topics import Topics
from tidemill.streams.commands import Cause
from tidemill.streams.decision import DECISION_BYTES, NeedsNewer
from tidemill.streams.envelope import (
    MESSAGE_BYTES_MAX,
    MESSAGES_SINCE,
    Envelope,
    broken_message,
    message_headers,
    place_of,
    policy_of,
    read_body,
)
from tidemill.streams.partitioner import Partitioner
from tidemill.streams.policies.base import CannotTake, ComesLater, Policy
from tidemill.streams.processor import Processor
from tidemill.streams.turn import NO_CAUSE

# Messages of one partition in one group: far beyond what a group may hold. A policy that has more
# to say keeps a table of it and says a part in each group.
MESSAGES_MAX: Final = 20_000


class MessagesWithoutEnd(Exception):
    """A bug: a policy sent more in one group than any group may hold."""


class UnsendableMessage(ValueError):
    """A bug: a message that no partition could take."""


class Messages:
    """The messages of one partition, both ways."""

    def __init__(
        self, number: int, partitions: int, topics: Topics, processor: Processor,
        partitioner: Partitioner, policies: Sequence[Policy],
    ) -> None:
        self._number = number
        self._partitions = partitions
        self._internal = topics.internal
        self._processor = processor
        self._partitioner = partitioner
        self._policies: dict[str, Policy] = {one.id: one for one in policies}
        self.turn = processor.turn
        self.turn.messages = self

    # --- out ---

    def send(self, home_key: str, policy: str, body: dict[str, Any]) -> None:
        """See `Turn.send`."""
        key = home_key.encode()
        value = self._value(policy, body, len(key))
        self._write(self._partitioner.of(home_key), key, policy, value)

    def partition_of(self, home_key: str) -> int:
        """See `Turn.partition_of`."""
        return self._partitioner.of(home_key)

    def send_to(self, partition: int, policy: str, body: dict[str, Any]) -> None:
        """See `Turn.send_to`."""
        self._write(partition, None, policy, self._value(policy, body, 0))

    def send_to_all(self, policy: str, body: dict[str, Any]) -> None:
        """See `Turn.send_to_all`."""
        value = self._value(policy, body, 0)
        for partition in range(self._partitions):
            self._write(partition, None, policy, value)

    def _value(self, policy: str, body: dict[str, Any], key_bytes: int) -> bytes:
        if policy not in self._policies:
            raise UnsendableMessage(f"no policy {policy!r} is registered here")
        try:
            value = orjson.dumps(body)
        except TypeError as error:
            raise UnsendableMessage(f"a message of {policy!r} is no JSON: {error}") from error
        size = key_bytes + len(value)
        if size > MESSAGE_BYTES_MAX:
            raise UnsendableMessage(
                f"a message of {policy!r} has {size} bytes, at most {MESSAGE_BYTES_MAX} go"
            )
        return value

    def _write(self, partition: int, key: bytes | None, policy: str, value: bytes) -> None:
        output = self._processor.output
        if output.messages >= MESSAGES_MAX:
            raise MessagesWithoutEnd(f"of {policy!r}, more than {MESSAGES_MAX} in one group")
        since = self._policies[policy].since or MESSAGES_SINCE
        headers = message_headers(
            policy=policy, internal=self._internal, partition=self._number,
            number=self._processor.state.next_message(), needs=since,
        )
        output.message(partition, key, value, headers)
        self._processor.spend(1 + len(value) // DECISION_BYTES)

    # --- in ---

    def take(self, envelope: Envelope, value: bytes | None, here: Cause) -> Refusal | None:
        """Hands a message to its policy; why it could not, where no ledger can have written it.

        Raises NeedsNewer for a policy that this version does not have.
        """
        self._processor.spend(1 + len(value or b"") // DECISION_BYTES)
        topic, origin, _ = envelope.origin
        if topic != self._internal or origin >= self._partitions:
            return broken_message(f"comes from no partition of this installation: {topic}/{origin}")
        policy = policy_of(envelope)
        if policy is None:
            return broken_message("names no policy")
        taker = self._policies.get(policy)
        if taker is None:
            what = f"{place_of(here)} is a message to the policy {policy!r}"
            raise NeedsNewer(what, envelope.needs)
        body = read_body(value)
        if isinstance(body, Refusal):
            return body
        self.turn.cause = here
        try:
            taker.on_message(self.turn, origin, body)
        except CannotTake as error:
            return broken_message(f"its policy cannot take: {error}")
        except ComesLater as later:
            what = f"{place_of(here)} is a message that {policy!r} cannot take yet: {later}"
            raise NeedsNewer(what, envelope.needs) from later
        finally:
            self.turn.cause = NO_CAUSE
        self._processor.drain()
        return None
