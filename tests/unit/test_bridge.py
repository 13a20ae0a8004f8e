"""What threads tell a loop: all of it arrives, with few wake-ups, and nothing after its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tidemill.bridge import LoopBridge, LoopPromise
from tidemill.sending import Promise
from tidemill.sent import sent_async

COUNT = 1_000


def settle(promises: list[LoopPromise]) -> None:
    for number, promise in enumerate(promises):
        promise.set_result(number)


def in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


async def test_all_arrive_with_one_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    bridge = LoopBridge(loop)
    promises = [bridge.promise() for _ in range(COUNT)]
    calls: list[Any] = []
    wake = loop.call_soon_threadsafe

    def count_and_wake(call: Callable[[], object], *args: Any) -> asyncio.Handle:
        calls.append(call)
        return wake(call, *args)

    monkeypatch.setattr(loop, "call_soon_threadsafe", count_and_wake)
    # The loop stands still meanwhile: joining blocks it.
    in_thread(lambda: settle(promises))
    assert await asyncio.gather(*(promise.future for promise in promises)) == list(range(COUNT))
    assert len(calls) == 1


async def test_none_is_lost_while_the_loop_is_awake() -> None:
    bridge = LoopBridge(asyncio.get_running_loop())
    promises = [bridge.promise() for _ in range(COUNT)]
    thread = threading.Thread(target=settle, args=(promises,))
    thread.start()
    async with asyncio.timeout(10.0):
        for number, promise in enumerate(promises):
            assert await promise.future == number
    thread.join()


async def test_an_error_is_raised_where_it_is_awaited() -> None:
    promise = LoopBridge(asyncio.get_running_loop()).promise()
    in_thread(lambda: promise.set_exception(ValueError("no")))
    with pytest.raises(ValueError, match="no"):
        await promise.future


async def test_who_gave_up_is_left_alone_and_the_next_one_is_told() -> None:
    bridge = LoopBridge(asyncio.get_running_loop())
    first, second = bridge.promise(), bridge.promise()
    first.future.cancel()
    in_thread(lambda: settle([first, second]))
    assert await second.future == 1
    assert first.future.cancelled()


def test_a_loop_that_has_ended_hears_nothing() -> None:
    async def begin() -> Any:
        return LoopBridge(asyncio.get_running_loop()).promise()

    promise = asyncio.run(begin())
    promise.set_result(1)  # the sender's thread must live on
    assert not promise.future.done()


async def test_a_loop_that_ends_at_this_moment_does_not_end_the_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()

    def too_late(*_: Any) -> None:
        raise RuntimeError("Event loop is closed")

    promise = LoopBridge(loop).promise()
    monkeypatch.setattr(loop, "call_soon_threadsafe", too_late)
    promise.set_result(1)
    assert not promise.future.done()


async def test_who_waits_for_room_first_is_sent_first() -> None:
    bridge = LoopBridge(asyncio.get_running_loop())
    sent: list[int] = []
    room = 0

    async def ask(number: int) -> None:
        answer = bridge.promise()

        def try_send(promise: Promise) -> bool:
            nonlocal room
            if not room:
                return False
            room -= 1
            sent.append(number)
            promise.set_result(None)
            return True

        await sent_async(partial(try_send), answer, 10.0)

    asking = [asyncio.create_task(ask(number)) for number in range(5)]
    await asyncio.sleep(0)
    room = 2
    asking.append(asyncio.create_task(ask(5)))  # it finds room, and stands behind the others
    await asyncio.wait(asking[:2])
    room = 10
    await asyncio.gather(*asking)
    assert sent == list(range(6))
