"""A ledger whose partitions have one policy more, the relay of the tests: `tidemill ledger …`."""

from __future__ import annotations

from typing import Any

from agents.ledger import main as ledger_
from schemas.topics import Topics
from streams.partition import Partition
from streams.store.state import PartitionState
from tests.unit.message_kit import relays
from tidemill.cli import main


def with_relay(
    number: int, partitions: int, topics: Topics, state: PartitionState, **rest: Any
) -> Partition:
    return Partition(
        number, partitions, topics, state, addressees=relays(state, number), **rest
    )


if __name__ == "__main__":
    vars(ledger_)["Partition"] = with_relay
    main()
