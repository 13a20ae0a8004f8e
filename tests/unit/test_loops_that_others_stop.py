"""Code of users that stops the loop it runs on, or cancels every task of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tidemill.agents.runtime import run


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> Any:
    made = run.new_event_loop() if request.param == "uvloop" else run._Loop()
    yield made
    made.close()


def test_a_loop_that_is_stopped_goes_on(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> str:
        for _ in range(3):
            loop.stop()
            await asyncio.sleep(0)
        return "done"

    assert run.run_through_exits(loop, main()) == "done"
    assert "has stopped its loop" in caplog.text


def test_an_error_of_the_main_task_passes(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        run.run_through_exits(loop, main())


class Ended(Exception):
    """In place of the end of the process."""


def test_tasks_that_are_all_cancelled_end_the_process_with_a_word(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(reason: str, error: BaseException | None = None) -> None:
        raise Ended(reason)

    monkeypatch.setattr(run, "fail_stop", end)

    async def main() -> None:
        for task in asyncio.all_tasks():
            task.cancel()
        await asyncio.sleep(60)

    with pytest.raises(Ended, match="has cancelled the tasks"):
        run.run_through_exits(loop, main())
