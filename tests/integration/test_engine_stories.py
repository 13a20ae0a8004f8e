"""`tidemill.testing.Engine` and the real engine tell the same story of the same inputs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.engine import Role
from tests.integration import story_jobs
from tests.integration.roles import Roles
from tests.integration.stories import (
    ALONE,
    ENDS,
    SCENARIOS,
    SECONDS,
    EngineStage,
    Feed,
    RealStage,
    Story,
)
from tidemill import Client

pytestmark = pytest.mark.timeout(300)

PREFIX = "stories."


@pytest.fixture(scope="module")
def real(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Story]]:
    """All scenarios on a ledger and a worker: side by side, and those that disturb at the end."""
    with ExitStack() as ending:
        env = {**os.environ, "TIDEMILL_KAFKA": kafka, "TIDEMILL_TOPIC_PREFIX": PREFIX}
        folder = tmp_path_factory.mktemp("stories")
        roles = Roles(folder, env, ending, command_seconds=SECONDS)
        assert roles.tidemill("topics", "apply").returncode == 0
        feed = Feed(kafka, PREFIX)
        ending.callback(feed.close)
        client = ending.enter_context(Client(kafka, topic_prefix=PREFIX))
        roles.begin("ledger", "ledger")
        roles.begin("worker", "worker", str(Path(story_jobs.__file__)), "--worker-id", "stories")
        for name in ("worker", "ledger"):
            ending.callback(_end, roles.roles[name])  # the last process of that name
        first = RealStage(client, feed, roles, "first")
        first.ask("story.process", job_id="j")  # all is up, a child process too
        first.until("j", *ENDS)

        def play(name: str) -> Story:
            stage = RealStage(client, feed, roles, name.replace(" ", "-"))
            SCENARIOS[name](stage)
            return stage.story()

        found: dict[str, Story] = {}
        with ThreadPoolExecutor(len(SCENARIOS)) as pool:
            together = {name: pool.submit(play, name) for name in SCENARIOS if name not in ALONE}
            found = {name: story.result(SECONDS) for name, story in together.items()}
        found |= {name: play(name) for name in ALONE}
        yield found


def _end(role: Role) -> None:
    role.kill()
    assert role.process is not None
    role.process.wait(SECONDS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_tell_the_same(name: str, real: dict[str, Story]) -> None:
    stage = EngineStage()
    try:
        SCENARIOS[name](stage)
        assert stage.story() == real[name]
    finally:
        stage.close()
