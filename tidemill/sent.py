"""One record of a client and its acknowledgement, waited for on a thread or on an event loop.

Owns that wait and its bounds. Refuses to know what is sent (`tidemill.client`) and how records
travel (`tidemill.sending`).
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any, Literal

from tidemill.agents import clocks
from tidemill.bridge import LoopPromise
from tidemill.sending import CLOSE_SLACK_SECONDS, ROOM_SECONDS, EnqueueFailed

CommandWord = Literal["cancel", "redrive", "signal"]
Sending = partial[bool]
"""Sends when there is room, and tells the promise; False when there is none."""


def sent(try_send: Sending, seconds: float) -> Any:
    """Send, when there is room, and wait for the answer: `seconds` each at most."""
    answer: Future[Any] = Future()
    deadline = clocks.monotonic() + seconds
    while not try_send(answer):
        if clocks.monotonic() > deadline:
            raise _unanswered(try_send, seconds)
        clocks.sleep(ROOM_SECONDS)
    try:
        # librdkafka's own bound is shorter: this one is for a thread that is not there any more.
        return answer.result(seconds + CLOSE_SLACK_SECONDS)
    except FutureTimeout:
        raise _unanswered(try_send, seconds) from None


def _unanswered(try_send: Sending, seconds: float) -> EnqueueFailed:
    return EnqueueFailed([str(try_send.args[2])], f"no room or no answer within {seconds:g} s")


async def sent_async(try_send: Sending, answer: LoopPromise, seconds: float) -> Any:
    """The same on a loop, which goes on meanwhile. Who comes first is sent first."""
    if answer.bridge.queue.locked() or not try_send(answer):
        async with answer.bridge.queue:
            deadline = clocks.monotonic() + seconds
            while not try_send(answer):  # librdkafka tells nobody of room
                if clocks.monotonic() > deadline:
                    raise _unanswered(try_send, seconds)
                await asyncio.sleep(ROOM_SECONDS)
    return await answer.future
