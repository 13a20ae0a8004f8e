"""Schedules on real parts: two ledgers, a worker that announces, one of the ledgers stopped.

Owns real roles over the session's broker. What the arithmetic says is tested without them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient
from fastapi import APIRouter, FastAPI

from tests.chaos.running import PARTITIONS, Tail
from tests.integration.roles import Roles
from tests.waiting import wait_until
from tidemill import AsyncClient, Client, InvalidRequest, ScheduleRefused, UnknownSchedule
from tidemill.agents import exit_codes
from tidemill.agents.api import problems
from tidemill.agents.api.schedules import ScheduleCommander, add_schedules
from tidemill.agents.crash import CRASH_EXIT_CODE, CRASH_VARIABLE

pytestmark = pytest.mark.timeout(300)

SECONDS: Final = 60.0
ENOUGH: Final = 4  # ticks before and after a ledger is gone
LATE_SECONDS: Final = 0.5
MODULE: Final = """
from tidemill import Context, Request, Tick, job, schedule

@schedule("quick", every="2s", first="now", overlap="allow")
async def quick(tick: Tick) -> list[Request]:
    return [Request(type="child", user_id="ada", payload={"for": tick.scheduled_for.isoformat()})]

@job("child")
async def child(payload: dict) -> dict:
    return payload

@job("nap")
async def nap(payload: dict, ctx: Context) -> None:
    await ctx.sleep("nap", payload["seconds"])
"""
WITHOUT: Final = """
from tidemill import job

@job("child")
async def child(payload: dict) -> dict:
    return payload
"""


class Installation(Roles):
    """Two ledgers and a worker."""

    def follow(self) -> None:
        self._events = Tail(
            self.env["TIDEMILL_KAFKA"], f"{self.env['TIDEMILL_TOPIC_PREFIX']}jobs.events"
        )
        self._events.start()
        self._ending.callback(self._events.close)

    def start(self, name: str, *words: str) -> None:
        role = self.begin(name, *words)
        wait_until(role.is_ready, SECONDS, role.tail)

    def events(self, kind: str, user_id: str) -> list[dict[str, Any]]:
        found = [orjson.loads(record.value or b"") for record in list(self._events.records)]
        return [one for one in found if one["event"] == kind and one["user_id"] == user_id]

    def ticks(self) -> list[str]:
        return [one["job_id"] for one in self.events("requested", "schedule:quick")]

    def asked(self, *words: str) -> Any:
        """The answer of `tidemill schedules`."""
        done = self.tidemill("schedules", *words)
        assert done.returncode == exit_codes.OK, done.stderr
        return orjson.loads(done.stdout)

    def wait_for_ticks(self, count: int) -> None:
        wait_until(lambda: len(self.ticks()) >= count, SECONDS, lambda: f"{self.ticks()}")


@pytest.fixture
def bare(kafka: str, tmp_path: Path) -> Iterator[Installation]:
    """Topics, and no role yet."""
    (tmp_path / "clockwork.py").write_text(MODULE)
    env = os.environ | {
        "TIDEMILL_KAFKA": kafka, "TIDEMILL_TOPIC_PREFIX": f"t{uuid.uuid4().hex[:10]}",
        "TIDEMILL_DATA": str(tmp_path / "data"),
    }
    with ExitStack() as ending:
        made = Installation(tmp_path, env, ending, command_seconds=2 * SECONDS)
        applied = made.tidemill("topics", "apply")
        assert applied.returncode == 0, applied.stderr
        made.follow()
        yield made


@pytest.fixture
def installation(bare: Installation) -> Installation:
    for number in (1, 2):
        bare.start(f"ledger-{number}", "ledger")
    bare.start("worker", "worker", "clockwork.py")
    return bare


def instant_of(job_id: str) -> datetime:
    return datetime.fromisoformat(job_id.partition("@")[2])


def test_two_ledgers_one_killed_one_job_a_tick(installation: Installation) -> None:
    made = installation
    made.wait_for_ticks(ENOUGH)
    # On time: what was asked for is told within half a second of its instant.
    told = made.events("requested", "schedule:quick")
    late = [
        (datetime.fromisoformat(one["occurred_at"]) - instant_of(one["job_id"])).total_seconds()
        for one in told[1:]
    ]
    assert sorted(late)[len(late) // 2] < LATE_SECONDS, late
    owner = _owner_of_ticks(made)
    process = made.roles[owner].process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    known = len(made.ticks())
    made.wait_for_ticks(known + ENOUGH)
    process.send_signal(signal.SIGCONT)
    made.wait_for_ticks(known + 2 * ENOUGH)
    counted = Counter(made.ticks())
    assert set(counted.values()) == {1}
    instants = sorted(instant_of(one) for one in counted)
    # An instant without a job of its own was missed, and the event of the last one says so.
    gone = sum(
        int(one["tags"][0].removeprefix("missed: "))
        for one in made.events("skipped", "schedule:quick")
    )
    told_of = len(made.events("skipped", "schedule:quick"))
    span = (instants[-1] - instants[0]).total_seconds()
    assert span / 2 + 1 == len(instants) + gone - told_of
    # Each tick that succeeded has had its one child.
    wait_until(
        lambda: len(made.events("succeeded", "ada")) >= known, SECONDS,
        lambda: f"{made.events('succeeded', 'ada')}",
    )
    children = Counter(one["job_id"] for one in made.events("requested", "ada"))
    assert set(children.values()) == {1}


def _owner_of_ticks(made: Installation) -> str:
    """Which ledger has the schedule's partition: that of most partitions will do for the first."""
    from tidemill.schemas.topics import DEV_PARTITIONS
    from tidemill.streams.partitioner import partition_of

    count = int(made.env.get("TIDEMILL_PARTITIONS", DEV_PARTITIONS))
    home = partition_of("schedule:quick", count)
    for name in ("ledger-1", "ledger-2"):
        lines = [one for one in made.roles[name].tail().splitlines() if "owns partitions" in one]
        if lines and str(home) in lines[-1].rpartition("[")[2]:
            return name
    return "ledger-1"


def test_commands_and_a_schedule_that_leaves_the_code(installation: Installation) -> None:
    made = installation
    made.wait_for_ticks(2)
    _steer(made)
    _steer_over_http(made)
    _steer_by_client(made)
    asyncio.run(_steer_by_async_client(made))
    _sleep_over_ticks(made)
    role = made.roles.pop("worker")
    assert role.process is not None
    role.process.terminate()
    role.process.wait(SECONDS)
    (made.folder / "clockwork.py").write_text(WITHOUT)
    made.start("worker-again", "worker", "clockwork.py")  # by another id
    wait_until(lambda: made.asked("show", "quick")["is_orphaned"], SECONDS, "it is not orphaned")
    last = made.ticks()
    assert made.asked("remove", "quick")["change"] == "removed"
    assert made.tidemill("schedules", "show", "quick").returncode == exit_codes.NOT_FOUND
    assert made.ticks() == last


def _steer(made: Installation) -> None:
    assert [one["name"] for one in made.asked("list", "--json")] == ["quick"]
    assert made.asked("pause", "quick")["is_paused"]
    again = made.tidemill("schedules", "pause", "quick")
    assert again.returncode == exit_codes.CONFLICT
    assert "it is paused already" in again.stderr
    made.asked("run", "quick")
    wait_until(lambda: any("!" in one for one in made.ticks()), SECONDS, lambda: f"{made.ticks()}")
    assert made.asked("resume", "quick")["next_at"] is not None
    made.asked("set", "by-hand", "--every", "1s", "--type", "child", "--payload", '{"a": 1}')
    wait_until(
        lambda: made.events("succeeded", "schedule:by-hand"), SECONDS, "no job of by-hand"
    )
    changed = made.asked(
        "set", "by-hand", "--cron", "0 9 * * *", "--zone", "Europe/Berlin", "--fold", "both"
    )
    assert changed["spec"]["payload"] == {"a": 1}
    again = made.asked("set", "by-hand", "--gap", "skip")
    assert (again["spec"]["gap"], again["spec"]["fold"]) == ("skip", "both")
    since, until = "2026-03-01T00:00:00Z", "2026-03-03T00:00:00Z"
    options = ("by-hand", "--since", since, "--until", until)
    assert made.asked("backfill", *options, "--count")["ticks"] == 2
    assert made.asked("backfill", *options)["change"] == "backfill of 2"
    wait_until(
        lambda: [
            one for one in made.events("succeeded", "schedule:by-hand")
            if one["job_id"].startswith("by-hand@2026-03-02T08:00:00Z!")
        ], SECONDS, "no job of the backfill",
    )
    assert made.asked("remove", "by-hand")["change"] == "removed"
    slips: tuple[tuple[tuple[str, ...], str], ...] = (
        (("--every", "1s"), "--type"), (("--type", "t", "--every", "1ms"), "--every"),
        (("--type", "t", "--cron", "61 * * * *"), "--cron"),
        (("--type", "t", "--cron", "* * * * *", "--zone", "Mars"), "--zone"),
        (("--type", "t", "--every", "1s", "--overlap", "drop"), "--overlap"),
        (("--type", "t", "--cron", "* * * * *", "--gap", "jump"), "--gap"),
        (("--type", "t", "--cron", "* * * * *", "--fold", "never"), "--fold"),
    )
    for given, said in slips:
        wrong = made.tidemill("schedules", "set", "wrong", *given)
        assert wrong.returncode == exit_codes.USAGE, wrong.stderr
        assert said in wrong.stderr
    unknown = made.tidemill("schedules", "run", "nobody")
    assert unknown.returncode == exit_codes.NOT_FOUND


def _steer_over_http(made: Installation) -> None:
    router = APIRouter(prefix="/api")
    commander = ScheduleCommander(
        made.env["TIDEMILL_KAFKA"], made.env["TIDEMILL_TOPIC_PREFIX"]
    )
    add_schedules(router, commander)
    app = FastAPI()
    problems.install(app, lambda *_: None)
    app.include_router(router)
    with closing(commander):
        asyncio.run(_ask_over_http(httpx.ASGITransport(app)))


def _steer_by_client(made: Installation) -> None:
    kafka, prefix = made.env["TIDEMILL_KAFKA"], made.env["TIDEMILL_TOPIC_PREFIX"]
    with Client(kafka, topic_prefix=prefix) as client:
        schedules = client.schedules
        with pytest.raises(UnknownSchedule, match="nobody"):
            schedules.show("nobody")
        with pytest.raises(InvalidRequest, match="type"):
            schedules.set("program", every="1h")
        with pytest.raises(InvalidRequest, match="cron"):
            schedules.set("program", cron="61 * * * *", type="child")
        made_now = schedules.set(
            "program", every="1h", type="child", payload={"a": 1}, actor="ada"
        )
        assert (made_now.every_seconds, made_now.origin, made_now.actor) == (3_600, "live", "ada")
        changed = schedules.set(
            "program", cron="30 2 * * *", zone="Europe/Berlin", gap="skip", fold="both"
        )
        assert (changed.cron, changed.gap, changed.fold) == ("30 2 * * *", "skip", "both")
        assert (changed.every_seconds, changed.payload) == (None, {"a": 1})
        handle = schedules.run("program")
        assert handle.result_sync(SECONDS).result == {"a": 1}
        assert schedules.pause("program").next_at is None
        with pytest.raises(ScheduleRefused, match="paused already"):
            schedules.pause("program")
        assert schedules.resume("program").next_at is not None
        assert [one.name for one in schedules.list()] == ["program", "quick"]
        since = datetime(2026, 3, 1, tzinfo=UTC)
        assert schedules.count("program", since, since + timedelta(days=2)) == 2
        assert schedules.backfill("program", since, since + timedelta(days=2)) == 2
        with pytest.raises(InvalidRequest, match="0 ticks"):
            schedules.backfill("program", since, since + timedelta(hours=1))
        assert schedules.remove("program") is None


async def _steer_by_async_client(made: Installation) -> None:
    kafka, prefix = made.env["TIDEMILL_KAFKA"], made.env["TIDEMILL_TOPIC_PREFIX"]
    async with AsyncClient(kafka, topic_prefix=prefix) as client:
        assert (await client.schedules.show("quick")).type == "quick"
        handle = await client.schedules.run("quick")
        assert (await handle.result(SECONDS)).status == "succeeded"


def _sleep_over_ticks(made: Installation) -> None:
    """A tick whose handler sleeps has not ended: those that come meanwhile are skipped."""
    made.asked("set", "sleepy", "--every", "1s", "--type", "nap", "--payload", '{"seconds": 3}')
    user = "schedule:sleepy"
    wait_until(lambda: made.events("succeeded", user), SECONDS, "no tick has ended")
    made.asked("remove", "sleepy")
    told = [one for kind in ("suspended", "resumed", "skipped") for one in made.events(kind, user)]
    first = made.events("suspended", user)[0]["job_id"]
    until = next(one for one in told if (one["event"], one["job_id"]) == ("resumed", first))
    meanwhile = [
        one for one in told
        if one["event"] == "skipped" and one["occurred_at"] < until["occurred_at"]
    ]
    assert len(meanwhile) >= 2
    assert {one["reason"] for one in meanwhile} == {"overlap"}


async def _ask_over_http(transport: httpx.ASGITransport) -> None:
    async with httpx.AsyncClient(transport=transport, base_url="http://t", timeout=SECONDS) as http:
        known = (await http.get("/api/schedules")).json()["schedules"]
        assert [one["name"] for one in known] == ["quick"]
        plan = {"type": "child", "every_ms": 60_000}
        assert (await http.put("/api/schedules/web", json=plan)).json()["origin"] == "live"
        assert (await http.post("/api/schedules/web/pause")).json()["is_paused"]
        assert (await http.post("/api/schedules/web/pause")).status_code == 409
        assert (await http.get("/api/schedules/web")).json()["next_at"] is None
        bad = {"type": "child", "cron": "61 * * * *"}
        wrong = await http.put("/api/schedules/web", json=bad)
        assert (wrong.status_code, wrong.json()["field"]) == (422, "cron")
        assert (await http.delete("/api/schedules/web")).json() is None
        assert (await http.get("/api/schedules/web")).status_code == 404


# --- kill -9 at a tick ---

CRASHES: Final = (
    "ledger.after_produce_before_commit:4",  # decided and written, not committed
    "ledger.after_commit_before_apply:4",
)


def test_ledgers_that_die_at_a_tick_ask_for_it_once(bare: Installation) -> None:
    """There is no worker, so nearly every transaction is that of a tick. Each of two ledgers ends
    at another step of its fourth one; then a third goes on."""
    made, env = bare, bare.env
    for number, point in enumerate(CRASHES, 1):
        made.env = env | {CRASH_VARIABLE: point}
        made.start(f"ledger-{number}", "ledger")
    made.env = env
    made.asked("set", "quick", "--every", "1s", "--type", "child", "--overlap", "allow",
               "--catch-up", "all")
    doomed = [made.roles[f"ledger-{number}"] for number in (1, 2)]
    wait_until(
        lambda: [role.exit_code() for role in doomed] == [CRASH_EXIT_CODE] * 2, SECONDS,
        lambda: "\n".join(role.tail(5) for role in doomed),
    )
    known = len(made.ticks())
    made.start("ledger-3", "ledger")
    made.wait_for_ticks(known + 2 * ENOUGH)
    told = made.ticks()
    instants = sorted(instant_of(one) for one in told)
    assert set(Counter(told).values()) == {1}
    steps = {later - earlier for earlier, later in pairwise(instants)}
    assert steps == {timedelta(seconds=1)}, "no tick is lost"
    # The first crash was at a tick: its request was written, and is again in the one that counts.
    written = Counter(_all_requested(made))
    assert max(written.values()) > 1
    assert set(told) <= set(written)


def _all_requested(made: Installation) -> list[str]:
    """The ids of all requests in the log, also of transactions that were aborted."""
    topic = f"{made.env['TIDEMILL_TOPIC_PREFIX']}jobs.events"
    consumer = Consumer({
        "bootstrap.servers": made.env["TIDEMILL_KAFKA"], "group.id": "raw",
        "isolation.level": "read_uncommitted", "enable.auto.commit": False,
        "enable.partition.eof": True,
    })
    found, ended = [], 0
    with closing(consumer):
        places = [TopicPartition(topic, number, 0) for number in range(PARTITIONS)]
        consumer.assign(places)
        while ended < len(places):
            for message in consumer.consume(1_000, timeout=1.0):
                if (error := message.error()) is not None:
                    ended += error.code() == KafkaError._PARTITION_EOF
                    continue
                event = orjson.loads(message.value() or b"")
                if event["event"] == "requested":
                    found.append(event["job_id"])
    return found


# --- an installation of an older version ---


def test_without_its_topic_roles_end_with_a_line_that_says_what_to_do(bare: Installation) -> None:
    made = bare
    topic = f"{made.env['TIDEMILL_TOPIC_PREFIX']}jobs.schedules"
    admin = AdminClient({"bootstrap.servers": made.env["TIDEMILL_KAFKA"]})
    admin.delete_topics([topic])[topic].result(SECONDS)
    wait_until(lambda: topic not in admin.list_topics(timeout=SECONDS).topics, SECONDS, topic)
    roles = [made.begin("ledger", "ledger"), made.begin("worker", "worker", "clockwork.py")]
    for asked in (("schedules", "list"), ("schedules", "run", "quick")):
        done = made.tidemill(*asked)
        assert done.returncode == exit_codes.UNREACHABLE
        assert f"topic {topic} does not exist: run `tidemill topics apply`" in done.stderr
    wait_until(
        lambda: all(role.exit_code() is not None for role in roles), SECONDS,
        lambda: "\n".join(role.tail(5) for role in roles),
    )
    for role in roles:
        assert role.exit_code() == exit_codes.CONFLICT
        last = role.tail(1)
        assert topic in last
        assert "run `tidemill topics apply`" in last
    assert made.tidemill("topics", "apply").returncode == 0
    made.start("ledger-again", "ledger")
    made.start("worker-again", "worker", "clockwork.py")
    made.wait_for_ticks(1)
