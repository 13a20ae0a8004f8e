"""Roles of two versions over one Kafka: the order of an upgrade, and what may be mixed.

The version before comes from a checkout that TIDEMILL_FORMER names, or from this repository's own
history where that is there. `tests/unit/test_newer_words.py` holds the same for each record.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.engine import Role
from tests.tidy.sources import ROOT
from tests.waiting import wait_until
from tidemill import Client, JobHandle
from tidemill.agents import exit_codes

#: A checkout of the version before, with nothing installed in it.
FORMER_VARIABLE: Final = "TIDEMILL_FORMER"
#: The last commit whose roles may be mixed with today's: messages, wait keys and rows of version 2
#: came after it.
FORMER: Final = "ad5dd77670b3a429836bc73c207ea895803a172d"
SECONDS: Final = 60.0
LATER_SECONDS: Final = 4.0  # until jobs go on that an exchange of roles finds waiting
HANDLERS: Final = """
import asyncio
from pathlib import Path
from tidemill import Context, NonRetryable, Retry, job

@job("greet")
async def greet(payload: dict, ctx: Context) -> dict:
    return {"hello": payload["name"]}

@job("fails")
def fails(payload: dict) -> None:
    raise NonRetryable("it never works")

@job("flaky")
async def flaky(payload: dict, ctx: Context) -> int:
    if ctx.attempt == 1:
        raise Retry("once more", after_seconds=payload["after"])
    return ctx.attempt

@job("held")
async def held(payload: dict, ctx: Context) -> str:
    while not Path(payload["until"]).exists():
        await asyncio.sleep(0.05)
    return "let go"

@job("endless")
async def endless(payload: dict, ctx: Context) -> None:
    Path(payload["begun"]).touch()
    await asyncio.sleep(600)
"""

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the version before."""
    if named := os.environ.get(FORMER_VARIABLE):
        return Path(named).resolve()
    found = subprocess.run(
        ["git", "archive", FORMER], cwd=ROOT, capture_output=True, check=False, timeout=SECONDS
    )
    if found.returncode:
        pytest.skip(f"no history with {FORMER[:7]} here, and {FORMER_VARIABLE} names no checkout")
    folder = tmp_path_factory.mktemp("former")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


class Mixed:
    """One installation whose roles are of the version that each is started with."""

    def __init__(self, folder: Path, env: dict[str, str], former: Path, ending: ExitStack) -> None:
        self.folder = folder
        self._env = env
        self._former = former
        self._ending = ending
        self._starts = 0
        self.roles: dict[str, Role] = {}

    def start(self, name: str, version: str) -> Role:
        """A ledger or a worker, `old` or `new`; returns once it is ready."""
        role = self.begin(name, version)
        wait_until(lambda: role.is_ready() or role.exit_code() is not None, SECONDS, role.tail)
        assert role.exit_code() is None, role.tail()
        return role

    def begin(self, name: str, version: str) -> Role:
        """One that need not become ready."""
        words = [name, "jobs_mixed.py", "--worker-id", "w"] if name == "worker" else [name]
        self._starts += 1
        log = self.folder / f"{self._starts}-{name}-{version}.log"
        role = Role(name, [sys.executable, "-m", "tidemill", *words], log, self.folder)
        role.env = dict(self._env)
        if version == "old":
            role.env["PYTHONPATH"] = str(self._former)
        role.start()
        assert role.process is not None
        self._ending.callback(role.process.wait)
        self._ending.callback(role.process.kill)
        self.roles[name] = role
        return role

    def replace(self, name: str, version: str) -> None:
        """The role ends as a deploy ends it; the one of the other version goes on."""
        self.stop(name)
        self.start(name, version)

    def stop(self, name: str) -> None:
        role = self.roles[name]
        role.send(signal.SIGTERM)
        wait_until(lambda: role.exit_code() is not None, SECONDS, role.tail)
        assert role.exit_code() == exit_codes.OK, role.tail()

    def told(self) -> str:
        return "\n".join(role.tail(15) for role in self.roles.values())


@pytest.fixture
def mixed(kafka: str, topic_prefix: str, tmp_path: Path, former: Path) -> Iterator[Mixed]:
    (tmp_path / "jobs_mixed.py").write_text(HANDLERS)
    env = {
        "TIDEMILL_KAFKA": kafka, "TIDEMILL_TOPIC_PREFIX": topic_prefix, "TIDEMILL_NATIVE": "0",
        "TIDEMILL_DATA": str(tmp_path / "data"), "TIDEMILL_INSTANCE_ID": "ledger-0",
    }
    with ExitStack() as ending:
        applied = subprocess.run(
            [sys.executable, "-m", "tidemill", "topics", "apply"], env={**os.environ, **env},
            cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False,
        )
        assert applied.returncode == exit_codes.OK, applied.stderr
        yield Mixed(tmp_path, env, former, ending)


@pytest.fixture
def client(kafka: str, topic_prefix: str, mixed: Mixed) -> Iterator[Client]:
    with Client(kafka=kafka, topic_prefix=topic_prefix) as made:
        yield made


class Work:
    """Jobs of every kind, and what becomes of each."""

    def __init__(self, client: Client, mixed: Mixed, name: str) -> None:
        self._client = client
        self._mixed = mixed
        self._let_go = mixed.folder / f"{name}.go"
        self._begun = mixed.folder / f"{name}.begun"
        later = datetime.now(UTC) + timedelta(seconds=LATER_SECONDS)
        ask = self._ask
        self.wanted: dict[JobHandle, tuple[str, object]] = {
            ask("greet", {"name": "Ada"}): ("succeeded", {"hello": "Ada"}),
            ask("greet", {"name": "Bob"}, run_at=later): ("succeeded", {"hello": "Bob"}),
            ask("fails", {}): ("failed", None),
            ask("flaky", {"after": LATER_SECONDS}): ("succeeded", 2),
            ask("held", {"until": str(self._let_go)}): ("succeeded", "let go"),
        }
        self._endless = ask("endless", {"begun": str(self._begun)})
        self.wanted[self._endless] = ("cancelled", None)
        wait_until(self._begun.exists, SECONDS, mixed.told)

    def _ask(
        self, type: str, payload: dict[str, object], run_at: datetime | None = None
    ) -> JobHandle:
        return self._client.enqueue(type, user_id="ada", payload=payload, run_at=run_at)

    def check(self) -> None:
        self._client.cancel(self._endless.user_id, self._endless.job_id)
        self._let_go.touch()
        for handle, wanted in self.wanted.items():
            end = self._client.wait(handle, SECONDS)
            assert (end.status, end.result) == wanted, (end, self._mixed.told())
            assert end.run == 1
            if end.status == "succeeded":
                assert end.attempts == (2 if wanted[1] == 2 else 1), end


def test_an_upgrade_in_its_order_takes_every_job_along(mixed: Mixed, client: Client) -> None:
    """Ledgers first: the new one takes over rows, leases and packs, and hears the old worker."""
    mixed.start("ledger", "old")
    mixed.start("worker", "old")
    over_both = Work(client, mixed, "over-both")
    mixed.replace("ledger", "new")
    over_both.check()
    beside = Work(client, mixed, "beside")
    mixed.replace("worker", "new")
    beside.check()
    Work(client, mixed, "after").check()


def test_a_new_worker_is_heard_by_an_old_ledger_while_no_field_is_new(
    mixed: Mixed, client: Client
) -> None:
    mixed.start("ledger", "old")
    mixed.start("worker", "new")
    Work(client, mixed, "mixed").check()


def test_a_ledger_of_the_version_before_refuses_the_rows_of_this_one(
    mixed: Mixed, client: Client
) -> None:
    """No way back once the new ledger has written: the old one ends, and takes nothing over."""
    mixed.start("ledger", "new")
    mixed.start("worker", "new")
    waiting = client.enqueue(
        "greet", user_id="ada", payload={"name": "Eve"},
        run_at=datetime.now(UTC) + timedelta(seconds=2 * LATER_SECONDS),
    )
    ended = client.enqueue("greet", user_id="ada", payload={"name": "Ada"})
    assert client.wait(ended, SECONDS).status == "succeeded"  # the one before is a row by now
    mixed.stop("ledger")
    refused = mixed.begin("ledger", "old")
    wait_until(lambda: refused.exit_code() is not None, SECONDS, refused.tail)
    assert refused.exit_code() != exit_codes.OK
    assert not refused.is_ready(), refused.tail()
    mixed.start("ledger", "new")
    assert client.wait(waiting, SECONDS).result == {"hello": "Eve"}
