"""The thread that sends for all callers lives on, whatever one caller's callback does."""

from __future__ import annotations

import threading
from typing import Any

from confluent_kafka import KafkaError, Producer

from tidemill.bursts import Bursts

SECONDS = 20.0
NOWHERE = {"bootstrap.servers": "127.0.0.1:1", "message.timeout.ms": 50, "log_level": 0}


def test_a_callback_that_raises_keeps_nobody_else_waiting() -> None:
    bursts = Bursts(Producer(NOWHERE))
    told: list[int | None] = []
    is_told = threading.Event()

    def raise_error(*_: Any) -> None:
        raise ValueError("a caller's own fault")

    def tell(error: KafkaError | None, _: Any) -> None:
        told.append(None if error is None else error.code())
        is_told.set()

    assert bursts.add("t", "a", b"1", raise_error)
    for _ in range(2):
        is_told.clear()
        assert bursts.add("t", "b", b"2", tell)
        assert is_told.wait(SECONDS)
    bursts.close()
    assert told == [KafkaError._MSG_TIMED_OUT] * 2
