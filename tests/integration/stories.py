"""What must be told alike by `Engine` and by the real engine: the scenarios, and their two stages.

Owns the scenarios as plain functions over a `Stage`, and both stages. Refuses to compare: the test
does. A story has no instants and no ids of its own: event, state after it, reason, run, attempt,
error code.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from tests.chaos.engine import Role
from tests.chaos.rawlog import reader
from tests.integration.roles import Roles
from tests.waiting import wait_until
from tidemill import Client
from tidemill.schemas.schedules import USER_PREFIX
from tidemill.schemas.topics import Topics
from tidemill.testing import Engine

Told = tuple[str, str | None, str | None, int, int, str | None]
Story = dict[str, list[Told]]
SECONDS: Final = 120.0
ENDS: Final = ("succeeded", "failed", "cancelled", "skipped", "expired")


class Stage(Protocol):
    """Where a scenario is played, by one user."""

    def now(self) -> datetime: ...
    def ask(self, type: str, payload: Any = None, **options: Any) -> None: ...
    def cancel(self, job_id: str) -> None: ...
    def redrive(self, job_id: str) -> None: ...
    def signal(self, job_id: str, name: str, value: Any) -> None: ...
    def until(self, job_id: str, *events: str, times: int = 1) -> None:
        """One of these events was told of the job so often."""
    def replace_worker(self) -> None:
        """kill -9, and another process of the same name."""
    def watch(self, schedule: str, *, is_new: bool = True) -> None:
        """Its ticks are the story, from the first one on or, if it is not new, from here on."""
    def until_ticks(self, schedule: str, ended: int) -> None:
        """So many of these have ended: they are what is told of it."""
    def ledger_is_away(self, seconds: float) -> None:
        """kill -9, and another process so much later."""


def told(event: dict[str, Any]) -> Told:
    error = event.get("error")
    return (
        event["event"], event["state_after"], event["reason"], event["run"], event["attempt"],
        None if error is None else error["code"],
    )


def is_noise(event: dict[str, Any]) -> bool:
    """What says no more than how quick a machine is. A record that was settled and not committed
    before a kill comes again; how far members are is told once a second."""
    kind: str = event["event"]
    is_of_members = kind == "progressed" and str(event["type"]).startswith("story.gathers")
    return is_of_members or kind == "outcome_ignored"


class Ticks:
    """Which ticks of schedules a stage tells of, by number in place of their instants."""

    def __init__(self, of: Callable[[str], Story]) -> None:
        self._of = of  # what there is of a user, by id
        self._seen: dict[str, int] = {}
        self._counts: dict[str, int] = {}

    def watch(self, schedule: str, *, is_new: bool) -> list[str]:
        self._seen[schedule] = 0 if is_new else len(self._of(USER_PREFIX + schedule))
        return list(self._seen)

    def have_ended(self, schedule: str, count: int) -> bool:
        self._counts[schedule] = count
        found = self._told(schedule)
        return len(found) == count and all(story[-1][0] in ENDS for story in found)

    def _told(self, schedule: str) -> list[list[Told]]:
        story = self._of(USER_PREFIX + schedule)
        begun = self._seen[schedule]
        ids = sorted(story)[begun:begun + self._counts.get(schedule, 0)]
        return [story[job_id] for job_id in ids]

    def story(self) -> Story:
        return {
            f"{schedule} {number}": told
            for schedule in self._seen for number, told in enumerate(self._told(schedule), 1)
        }


class EngineStage:
    """An `Engine` of the scenario's own."""

    def __init__(self) -> None:
        self._engine = Engine()
        self._user = "user"
        self._ticks = Ticks(self._of)

    def now(self) -> datetime:
        return self._engine.now

    def ask(self, type: str, payload: Any = None, **options: Any) -> None:
        self._engine.enqueue(type, payload, user_id=self._user, **options)

    def cancel(self, job_id: str) -> None:
        self._engine.cancel((self._user, job_id))

    def redrive(self, job_id: str) -> None:
        self._engine.redrive((self._user, job_id))

    def signal(self, job_id: str, name: str, value: Any) -> None:
        self._engine.signal((self._user, job_id), name, value)

    def until(self, job_id: str, *events: str, times: int = 1) -> None:
        def is_told() -> bool:
            found = self._engine.events((self._user, job_id))
            return sum(found.count(event) for event in events) >= times

        self._go_on_until(is_told, f"{events} of {job_id}")

    def _go_on_until(self, is_there: Callable[[], bool], what: str) -> None:
        self._engine.run()
        for _ in range(2_000):
            if is_there():
                return
            self._engine.advance("100ms")
        raise AssertionError(f"{what}: {self.story()}")

    def replace_worker(self) -> None:
        self._engine.restart_worker()

    def watch(self, schedule: str, *, is_new: bool = True) -> None:
        self._engine.announce_schedules(*self._ticks.watch(schedule, is_new=is_new))

    def until_ticks(self, schedule: str, ended: int) -> None:
        self._go_on_until(lambda: self._ticks.have_ended(schedule, ended), f"{ended} ticks")

    def ledger_is_away(self, seconds: float) -> None:
        self._engine.kill_ledger()
        self._engine.advance(seconds)
        self._engine.restart_ledger()

    def _of(self, user_id: str) -> Story:
        return {
            job.job_id: [
                told(event) for event in (one.model_dump(mode="json") for one in job.story)
                if not is_noise(event)
            ]
            for job in self._engine.jobs if job.user_id == user_id
        }

    def story(self) -> Story:
        return self._of(self._user) | self._ticks.story()

    def close(self) -> None:
        self._engine.close()


class Feed:
    """All events of one installation, as they come."""

    def __init__(self, kafka: str, prefix: str) -> None:
        self._consumer: Consumer = reader(kafka)
        self._events: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._topic = Topics(prefix).events
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        found: Any = self._consumer.list_topics(self._topic, timeout=SECONDS)
        self._consumer.assign([
            TopicPartition(self._topic, number, OFFSET_BEGINNING)
            for number in found.topics[self._topic].partitions
        ])
        while not self._is_closing:
            record = self._consumer.poll(0.1)
            if record is not None and record.error() is None:
                event = orjson.loads(record.value() or b"")
                self._events[event["user_id"]].append(event)
        self._consumer.close()

    def of(self, user_id: str) -> list[dict[str, Any]]:
        return list(self._events[user_id])

    def close(self) -> None:
        self._is_closing = True
        self._thread.join()


class RealStage:
    """A ledger and a worker, which all scenarios share; `user` is the scenario's."""

    def __init__(self, client: Client, feed: Feed, roles: Roles, user: str) -> None:
        self._client = client
        self._feed = feed
        self._roles = roles
        self._user = user
        self._ticks = Ticks(self._of)

    def now(self) -> datetime:
        return datetime.now().astimezone()

    def ask(self, type: str, payload: Any = None, **options: Any) -> None:
        self._client.enqueue(type, user_id=self._user, payload=payload, **options)

    def cancel(self, job_id: str) -> None:
        self._client.cancel(self._user, job_id)

    def redrive(self, job_id: str) -> None:
        self._client.redrive(self._user, job_id)

    def signal(self, job_id: str, name: str, value: Any) -> None:
        self._client.signal(self._user, job_id, name, value)

    def until(self, job_id: str, *events: str, times: int = 1) -> None:
        wait_until(
            lambda: sum(
                event["job_id"] == job_id and event["event"] in events
                for event in self._feed.of(self._user)
            ) >= times,
            SECONDS, lambda: f"{events} of {job_id}: {self.story()}",
        )

    def replace_worker(self) -> None:
        self._kill("worker").start()

    def _kill(self, name: str) -> Role:
        role = self._roles.roles[name]
        role.kill()
        assert role.process is not None
        role.process.wait(SECONDS)
        role.env = self._roles.env
        return role

    def watch(self, schedule: str, *, is_new: bool = True) -> None:
        self._ticks.watch(schedule, is_new=is_new)

    def until_ticks(self, schedule: str, ended: int) -> None:
        wait_until(
            lambda: self._ticks.have_ended(schedule, ended), SECONDS,
            lambda: f"{ended} ticks of {schedule}: {self.story()}",
        )

    def ledger_is_away(self, seconds: float) -> None:
        ledger = self._kill("ledger")
        back_at = time.monotonic() + seconds
        wait_until(lambda: time.monotonic() >= back_at, SECONDS, "time stands still")
        ledger.start()

    def _of(self, user_id: str) -> Story:
        found: Story = {}
        for event in self._feed.of(user_id):
            if not is_noise(event):
                found.setdefault(event["job_id"], []).append(told(event))
        return found

    def story(self) -> Story:
        return self._of(self._user) | self._ticks.story()


# --- the scenarios --------------------------------------------------------------------------------


def _act(*acts: str, **options: Any) -> Callable[[Stage], None]:
    def play(stage: Stage) -> None:
        stage.ask("story.act", {"do": list(acts)}, job_id="j", **options)
        stage.until("j", *ENDS)

    return play


def redrive(stage: Stage) -> None:
    stage.ask("story.act", {"do": ["never"]}, job_id="j")
    stage.until("j", "failed")
    stage.redrive("j")
    stage.until("j", "failed", times=2)


def redrive_of_a_success(stage: Stage) -> None:
    stage.ask("story.act", job_id="j")
    stage.until("j", "succeeded")
    stage.redrive("j")
    stage.until("j", "command_refused")


def the_same_again(stage: Stage) -> None:
    stage.ask("story.act", {"n": 1}, job_id="j")
    stage.until("j", "succeeded")
    stage.ask("story.act", {"n": 1}, job_id="j")
    stage.until("j", "duplicate_ignored")
    stage.ask("story.act", {"n": 2}, job_id="j")
    stage.until("j", "conflict_ignored")


def unique_key(stage: Stage) -> None:
    stage.ask("story.act", {"do": ["sleep"], "seconds": 1.5}, job_id="first", unique_key="k")
    stage.until("first", "attempt_started")
    stage.ask("story.act", {}, job_id="second", unique_key="k")
    stage.until("second", *ENDS)
    stage.until("first", *ENDS)


def rate_limit_delays(stage: Stage) -> None:
    stage.ask("story.delayed", job_id="first")
    stage.until("first", *ENDS)
    stage.ask("story.delayed", job_id="second")
    stage.until("second", *ENDS)


def rate_limit_skips(stage: Stage) -> None:
    stage.ask("story.skipped", job_id="first")
    stage.until("first", *ENDS)
    stage.ask("story.skipped", job_id="second")
    stage.until("second", *ENDS)


def concurrency_of_a_user(stage: Stage) -> None:
    stage.ask("story.alone", {"seconds": 1.5}, job_id="first")
    stage.until("first", "attempt_started")
    stage.ask("story.alone", {"seconds": 0}, job_id="second")
    stage.until("second", *ENDS)


def _cancel_after(stage: Stage, event: str) -> None:
    stage.until("j", event)
    stage.cancel("j")
    stage.until("j", *ENDS)


def cancel_waiting(stage: Stage) -> None:
    stage.ask("story.act", job_id="j", run_at=stage.now() + timedelta(hours=1))
    _cancel_after(stage, "scheduled")


def cancel_running(stage: Stage) -> None:
    stage.ask("story.alone", {"seconds": 60}, job_id="j")
    _cancel_after(stage, "attempt_started")


def cancel_running_with_context(stage: Stage) -> None:
    stage.ask("story.act", {"do": ["sleep"], "seconds": 60}, job_id="j")
    _cancel_after(stage, "attempt_started")


def cancel_between_attempts(stage: Stage) -> None:
    stage.ask("story.act", {"do": ["retry_far"]}, job_id="j")
    stage.until("j", "retry_scheduled")
    stage.cancel("j")
    stage.until("j", *ENDS)


def time_out_to_the_end(stage: Stage) -> None:
    stage.ask("story.brief", {"slow": 2}, job_id="j")
    stage.until("j", *ENDS)


def cancel_before_request(stage: Stage) -> None:
    stage.cancel("j")
    stage.until("j", "cancel_kept")
    stage.ask("story.act", job_id="j")
    stage.until("j", *ENDS)


def expiry(stage: Stage) -> None:
    now = stage.now()
    stage.ask(
        "story.act", job_id="j", run_at=now + timedelta(hours=1),
        expires_at=now + timedelta(seconds=1.5),
    )
    stage.until("j", *ENDS)


def run_at(stage: Stage) -> None:
    stage.ask("story.act", job_id="j", run_at=stage.now() + timedelta(seconds=1.5))
    stage.until("j", *ENDS)


def unknown_type(stage: Stage) -> None:
    stage.ask("story.nobody", job_id="j")
    stage.until("j", *ENDS)


def children(stage: Stage) -> None:
    stage.ask("story.act", {"do": ["children"]}, job_id="j")
    for job_id in ("j", "j.a", "j.b"):
        stage.until(job_id, *ENDS)


def bad_payload(stage: Stage) -> None:
    stage.ask("story.pay", {"amount": "many"}, job_id="j")
    stage.until("j", *ENDS)


def a_thread(stage: Stage) -> None:
    stage.ask("story.thread", {"attempts": 2}, job_id="j")
    stage.until("j", *ENDS)


def a_process(stage: Stage) -> None:
    stage.ask("story.process", job_id="j")
    stage.until("j", *ENDS)


def time_out_then_success(stage: Stage) -> None:
    stage.ask("story.brief", {"slow": 1}, job_id="j")
    stage.until("j", *ENDS)


def _type(name: str, **payload: Any) -> Callable[[Stage], None]:
    def play(stage: Stage) -> None:
        stage.ask(name, payload, job_id="j")
        stage.until("j", *ENDS)

    return play


def cancel_awaiting(stage: Stage) -> None:
    stage.ask("story.suspends_in_thread", {"seconds": 60}, job_id="j")
    _cancel_after(stage, "suspended")


def redrive_of_a_gather(stage: Stage) -> None:
    stage.ask("story.gathers", {"members": 3, "failing": [1]}, job_id="j")
    stage.until("j", "failed")
    stage.redrive("j")
    stage.until("j", "succeeded")


def cancel_of_a_gather(stage: Stage) -> None:
    stage.ask("story.gathers", {"members": 3, "seconds": 60}, job_id="j")
    stage.until("j.runs.0", "attempt_started")
    stage.cancel("j")
    stage.until("j", *ENDS)
    stage.until("j.runs.0", *ENDS)


def _signalled(type: str, value: Any = None) -> Callable[[Stage], None]:
    def play(stage: Stage) -> None:
        stage.ask(type, {}, job_id="j")
        stage.until("j", "suspended")
        stage.signal("j", "go", value)
        stage.until("j", *ENDS)

    return play


def signal_before_request(stage: Stage) -> None:
    stage.signal("j", "go", {"amount": 7})
    stage.until("j", "signal_kept")
    stage.ask("story.waits", {}, job_id="j")
    stage.until("j", *ENDS)


def signal_twice(stage: Stage) -> None:
    stage.signal("j", "go", {"amount": 7})
    stage.signal("j", "go", {"amount": 8})
    stage.until("j", "command_refused")
    stage.ask("story.waits", {}, job_id="j")
    stage.until("j", *ENDS)
    stage.signal("j", "go", {"amount": 9})
    stage.until("j", "command_refused", times=2)


def signal_that_never_comes(stage: Stage) -> None:
    stage.ask("story.waits", {"seconds": 1}, job_id="j")
    stage.until("j", *ENDS)
    stage.ask("story.waits_in_thread", {"seconds": 1}, job_id="k")
    stage.until("k", *ENDS)


def cancel_of_one_that_waits_for_ever(stage: Stage) -> None:
    stage.ask("story.waits_in_thread", {}, job_id="j")
    _cancel_after(stage, "suspended")
    stage.signal("j", "go", 1)
    stage.until("j", "command_refused")


def crash_in_the_middle(stage: Stage) -> None:
    stage.ask("story.act", {"do": ["sleep"], "seconds": 2}, job_id="j")
    stage.until("j", "attempt_started")
    stage.replace_worker()
    stage.until("j", *ENDS)


def collapse(stage: Stage) -> None:
    stage.ask("story.shared", {"thing": 1, "seconds": 3}, job_id="first")
    stage.until("first", "attempt_started")
    stage.ask("story.shared", {"thing": 1, "seconds": 0}, job_id="joiner")
    stage.ask("story.shared", {"thing": 2, "seconds": 0}, job_id="another")
    stage.ask("story.shared", {"thing": 1, "seconds": 0}, job_id="leaves")
    stage.until("leaves", "deferred")
    stage.cancel("leaves")
    for job_id in ("leaves", "another", "first", "joiner"):
        stage.until(job_id, *ENDS)


def collapse_with_a_winner_that_is_cancelled(stage: Stage) -> None:
    stage.ask("story.shared", {"thing": 1, "seconds": 60}, job_id="first")
    stage.until("first", "attempt_started")
    stage.ask("story.shared", {"thing": 1, "seconds": 0}, job_id="joiner")
    stage.until("joiner", "deferred")
    stage.cancel("first")
    for job_id in ("first", "joiner"):
        stage.until(job_id, *ENDS)


def _ticks(schedule: str, count: int) -> Callable[[Stage], None]:
    def play(stage: Stage) -> None:
        stage.watch(schedule)
        stage.until_ticks(schedule, count)

    return play


def catch_up(stage: Stage) -> None:
    schedules = ("story.catches_up_last", "story.catches_up_all")
    for name in schedules:
        stage.watch(name, is_new=False)
    for name in schedules:
        stage.until_ticks(name, 2)
    stage.ledger_is_away(9)
    for name in schedules:
        stage.until_ticks(name, 5)


ALONE: Final = {"crash_in_the_middle": crash_in_the_middle, "catch_up": catch_up}
"""These disturb the others."""

SCENARIOS: Final[dict[str, Callable[[Stage], None]]] = {
    "success": _act("return"),
    "retry then success": _act("retry", "return"),
    "retry after a while": _act("retry_in", "return"),
    "dead": _act("error"),
    "dead at once": _act("never"),
    "one attempt": _act("error", max_attempts=1),
    "skip by handler": _act("skip"),
    "progress": _act("progress"),
    "result too large": _act("big"),
    "result not JSON": _act("odd"),
    "steps and a sleep": _type("story.suspends"),
    "steps and a sleep in a thread": _type("story.suspends_in_thread"),
    "a gather": _type("story.gathers", members=3),
    "a gather in a thread": _type("story.gathers_in_thread", members=3),
    "a gather of nobody": _type("story.gathers", members=0),
    "a gather that tolerates": _type("story.gathers", members=3, failing=[1], tolerate="34%"),
    "a gather that does not": _type("story.gathers", members=3, failing=[0, 2], tolerate=1),
    "a signal": _signalled("story.waits", {"amount": 7}),
    "a signal in a thread": _signalled("story.waits_in_thread", [1, None]),
    "a signal in a process": _signalled("story.waits_in_process", {"amount": 7}),
    "a signal that does not fit": _signalled("story.waits", {"amount": "many"}),
    "a swallowed suspension": _type("story.swallows"),
    "a name used twice": _type("story.twice"),
    "ticks of an interval": _ticks("story.often", 3),
    "ticks of a cron": _ticks("story.by_cron", 2),
    "overlap skip": _ticks("story.skips", 3),
    "overlap queue one": _ticks("story.queues", 3),
    "overlap cancel old": _ticks("story.cancels", 3),
    **{
        each.__name__: each
        for each in (
            unknown_type, redrive, redrive_of_a_success, the_same_again, unique_key,
            rate_limit_delays, rate_limit_skips, concurrency_of_a_user, cancel_waiting,
            cancel_running, cancel_running_with_context, cancel_between_attempts,
            cancel_before_request, expiry, run_at, children, bad_payload, a_thread, a_process,
            cancel_awaiting, time_out_then_success, time_out_to_the_end, redrive_of_a_gather,
            cancel_of_a_gather, collapse, collapse_with_a_winner_that_is_cancelled,
            signal_before_request, signal_twice, signal_that_never_comes,
            cancel_of_one_that_waits_for_ever,
        )
    },
    **ALONE,
}
