"""A relay that ends itself between two steps, as kill -9 would: `STEP DSN KAFKA PREFIX`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

from tidemill.outbox import delivery, relay, store

ROWS_HANDED_OVER: Final = 5  # then the half of a batch is with Kafka


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str) -> None:
    setattr(owner, name, die)


def after(owner: Any, name: str) -> None:
    found: Callable[..., Any] = getattr(owner, name)

    def replaced(*args: Any) -> Any:
        result = found(*args)
        die()
        return result

    setattr(owner, name, replaced)


def in_the_middle() -> None:
    found = delivery.Delivery._hand_over
    count = 0

    def replaced(self: Any, producer: Any, *args: Any) -> Any:
        nonlocal count
        count += 1
        result = found(self, producer, *args)
        if count == ROWS_HANDED_OVER:
            producer.flush()
            die()
        return result

    delivery.Delivery._hand_over = replaced  # type: ignore[method-assign,assignment]


STEPS: Final[dict[str, Callable[[], None]]] = {
    "claimed": lambda: after(store, "_taken"),
    "before_send": lambda: before(delivery.Delivery, "send"),
    "half_sent": in_the_middle,
    "acknowledged": lambda: after(delivery.Delivery, "send"),
    "before_delete": lambda: before(store, "_settle"),
    "deleted_not_committed": lambda: after(store, "_settle"),
    "committed": lambda: after(relay.Relay, "send_once"),
}

if __name__ == "__main__":
    step, database, kafka, prefix = sys.argv[1:]
    STEPS[step]()
    relay.Relay(database, kafka=kafka, topic_prefix=prefix).run()
