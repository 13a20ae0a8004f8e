"""A ledger whose partitions have one policy more, the relay of the tests: `tidemill ledger …`."""

from __future__ import annotations

from typing import Any

from tests.unit.message_kit import relays
from tidemill.agents.ledger import main as ledger_
from tidemill.cli import main
from tidemill.schemas.topics import Topics
from tidemill.streams.partition import Partition
from tidemill.streams.store.state import PartitionState


def with_relay(
    number: int, partitions: int, topics: Topics, state: PartitionState, **rest: Any
) -> Partition:
    for policy in relays(number):
        state.add_policy(policy)
    return Partition(number, partitions, topics, state, **rest)


if __name__ == "__main__":
    vars(ledger_)["Partition"] = with_relay
    main()
