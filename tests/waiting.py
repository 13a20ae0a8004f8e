"""Waiting for a condition, with a deadline: the one way in which tests let time pass."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.05


def wait_until(predicate: Callable[[], T], timeout: float, message: str | Callable[[], str]) -> T:
    """The first true value of `predicate`; an AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not (value := predicate()):
        if time.monotonic() > deadline:
            text = message if isinstance(message, str) else message()
            raise AssertionError(f"waited {timeout:g} s in vain: {text}")
        pause.wait(POLL_SECONDS)
    return value
