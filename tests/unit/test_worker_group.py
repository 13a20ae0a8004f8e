"""What the worker's membership of its group bounds: repeats after a kill, time to the heirs and to
its own return."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill.agents.settings import WorkerSettings
from tidemill.agents.worker.main import worker_app
from tidemill.schemas.wire import HEARTBEAT_MISSING_SECONDS, LATE_START_SECONDS


def test_little_comes_again_after_a_kill_and_heirs_are_quick() -> None:
    conf = worker_app(WorkerSettings(worker_id="w-0")).conf
    assert conf.consumer_group_instance_id == "w-0"
    # A settled record that is not committed comes again, in front of what was rescued.
    assert conf.broker_commit_interval <= LATE_START_SECONDS / 4
    # What was sent to a worker that is gone moves to others before its attempts count as lost.
    heirs_know = conf.broker_session_timeout + conf.broker_heartbeat_interval
    assert heirs_know < HEARTBEAT_MISSING_SECONDS
    assert conf.broker_heartbeat_interval * 3 < conf.broker_session_timeout


def test_a_name_that_changes_with_each_start_is_no_static_member() -> None:
    assert worker_app(WorkerSettings()).conf.consumer_group_instance_id is None


async def test_no_role_sleeps_before_it_joins_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    manager: Any = worker_app(WorkerSettings()).tables
    begun: list[str] = []

    async def sleep(seconds: float) -> None:
        raise AssertionError(f"slept for {seconds} s")

    async def tell() -> None:
        begun.append("channels")

    async def recover() -> None:
        begun.append("recovery")

    monkeypatch.setattr(manager, "sleep", sleep)
    monkeypatch.setattr(manager, "_update_channels", tell)
    monkeypatch.setattr(manager.recovery, "start", recover)
    await manager.on_start()
    assert begun == ["channels", "recovery"]
