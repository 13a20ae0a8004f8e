"""A Hypothesis machine over one partition: records in, records out, aborts and restores between.

After each group the independent folds, the rows and the live state must say the same, and an
aborted group must leave no trace. At the end the world is kind, and everything accepted ends once.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.chaos.promises import Asked, Limit
from tests.property.rig import START_MS, TOPICS, WORKER, Input, Rig, observable, outcome_of, pack
from tidemill.schemas.requests import STEP_BYTES_MAX
from tidemill.schemas.wire import BackoffSpec, ConcurrencySpec, Definition, LimitSpec
from tidemill.schemas.words import State
from tidemill.streams.job import Job, JobKey

EXAMPLES: Final = 250
STEPS: Final = 50
KIND_GROUPS_MAX: Final = 400
WINDOW_MS: Final = 5_000
USERS: Final = ("u", 'ü/"2\\', "a/b")
IDS: Final = ("1", "2", "3", "b/1")
TOO_LARGE: Final = "x" * (STEP_BYTES_MAX - 1)  # with its quotes
NAMES: Final = ("a", "b", "c", "ü" * 128)  # of steps, sleeps and signals
KINDS: Final = ("started", "progressed", "succeeded", "failed", "skipped", "returned")


def _define(type: str, **facts: Any) -> Definition:
    backoff = BackoffSpec(base_ms=100, cap_ms=2_000)
    return Definition(schema_version=1, type=type, backoff=backoff, max_attempts=2, **facts)


DEFINITIONS: Final = {
    definition.type: definition
    for definition in (
        _define("plain"),
        _define("skip", limits=(LimitSpec(limit=2, window_ms=WINDOW_MS, over="skip"),)),
        _define("delay", limits=(LimitSpec(limit=1, window_ms=WINDOW_MS, over="delay"),)),
        _define("unique", unique_by="user"),
        _define(
            "pair", concurrency=ConcurrencySpec(limit=2),
            limits=(LimitSpec(limit=3, window_ms=WINDOW_MS, over="delay"),),
        ),
        _define("joint", collapse_by="payload.n"),
        _define("late"),
    )
}
TYPES: Final = (*DEFINITIONS, "never")
LIMITS: Final = {
    name: tuple(Limit(spec.limit, spec.window_ms, spec.over) for spec in definition.limits)
    for name, definition in DEFINITIONS.items()
    if definition.limits
}
FATES: Final = st.sampled_from(("hold", "commit", "commit", "commit", "abort", "crash"))


class PartitionMachine(RuleBasedStateMachine):
    """Rules gather inputs; `group` and its siblings decide them."""

    @initialize()
    def begin(self) -> None:
        self.rig = Rig(
            limits=LIMITS, max_attempts=dict.fromkeys(TYPES, 2), concurrency={"pair": 2}
        )
        self.rig.definitions = {name: DEFINITIONS[name] for name in TYPES[:6]}
        self.now_ms = START_MS
        self.inputs: list[Input] = []
        self.incarnation = 1

    # --- what arrives ---

    @rule(
        user=st.sampled_from(USERS), name=st.sampled_from(IDS), type=st.sampled_from(TYPES),
        unique_key=st.sampled_from((None, None, "k")),
        run_in_ms=st.sampled_from((None, None, -10, 3_000)),
        expires_in_ms=st.sampled_from((None, None, -1, 500, 4_000)),
        priority=st.sampled_from(("high", "medium", "low")), size=st.integers(0, 2), fate=FATES,
    )
    def submit(
        self, user: str, name: str, type: str, unique_key: str | None, run_in_ms: int | None,
        expires_in_ms: int | None, priority: str, size: int, fate: str,
    ) -> None:
        # What a request says of its instants is fixed per job: the first one counts.
        key = (user, f"{type}{name}")
        run_at = None if run_in_ms is None else self.now_ms + run_in_ms
        asked = self.rig.asked.setdefault(key, Asked(unique_key, run_at))
        body: dict[str, Any] = {
            "type": type, "user_id": user, "job_id": key[1], "payload": {"n": size},
            "priority": priority, "unique_key": asked.unique_key, "run_at": asked.run_at_ms,
        }
        if expires_in_ms is not None:
            body["expires_at"] = self.now_ms + expires_in_ms
        self._take(Input(TOPICS.requested, orjson.dumps(body)), fate)

    @rule(
        user=st.sampled_from(USERS), name=st.sampled_from(IDS), type=st.sampled_from(TYPES),
        fate=FATES,
    )
    def submit_broken(self, user: str, name: str, type: str, fate: str) -> None:
        """A request that is refused; what it says of its instants does not count."""
        key = (user, f"{type}{name}")
        self.rig.asked.setdefault(key, Asked(None, None))
        body = {"type": type, "user_id": user, "job_id": key[1], "surprise": 1}
        self._take(Input(TOPICS.requested, orjson.dumps(body)), fate)

    @rule(
        user=st.sampled_from(USERS), name=st.sampled_from(IDS), type=st.sampled_from(TYPES),
        command=st.sampled_from(("cancel", "redrive")), fate=FATES,
    )
    def command(self, user: str, name: str, type: str, command: str, fate: str) -> None:
        body = {"command": command, "user_id": user, "job_id": f"{type}{name}"}
        self._take(Input(TOPICS.commands, orjson.dumps(body)), fate)

    @precondition(lambda self: self.rig.in_flight())
    @rule(
        pick=st.integers(0, 99), kind=st.sampled_from((*KINDS, "failed", "succeeded")),
        stale=st.sampled_from((0, 0, 0, 1)), is_retryable=st.booleans(),
        retry_after_ms=st.sampled_from((None, -5, 0, 700)), fate=FATES,
    )
    def report(
        self, pick: int, kind: str, stale: int, is_retryable: bool, retry_after_ms: int | None,
        fate: str,
    ) -> None:
        jobs = self.rig.in_flight()
        job = jobs[pick % len(jobs)]
        told = outcome_of(
            job, kind, started_at=self.now_ms - 10, finished_at=self.now_ms,
            retry_after_ms=retry_after_ms, result={"n": 1},
        )
        told["epoch"] -= stale
        if kind == "failed":
            told["error"] = {"code": "E", "message": "m", "retryable": is_retryable}
        given = Input(TOPICS.outcomes, pack([told], incarnation=self.incarnation))
        self._take(given, fate)

    @precondition(lambda self: self.rig.in_flight())
    @rule(
        pick=st.integers(0, 99), name=st.sampled_from(NAMES), stale=st.sampled_from((0, 0, 0, 1)),
        result=st.sampled_from((None, 7, {"n": [1, "ü"]}, TOO_LARGE)), fate=FATES,
    )
    def keep_step(self, pick: int, name: str, stale: int, result: Any, fate: str) -> None:
        """A step's result, perhaps too large, perhaps of a name that is known."""
        self._say(pick, stale, "stepped", fate, name=name, result=result)

    @precondition(lambda self: self.rig.in_flight())
    @rule(
        pick=st.integers(0, 99), name=st.sampled_from(NAMES), stale=st.sampled_from((0, 0, 0, 1)),
        for_ms=st.sampled_from((0, 1, 900, 5_000)), fate=FATES,
    )
    def sleep(self, pick: int, name: str, stale: int, for_ms: int, fate: str) -> None:
        """An attempt ends in a sleep, perhaps in one that is over, or is called as a step is."""
        waits = {"kind": "sleep", "name": name, "for_ms": for_ms}
        self._say(pick, stale, "suspended", fate, waits=waits)

    @precondition(lambda self: self.rig.in_flight())
    @rule(
        pick=st.integers(0, 99), name=st.sampled_from(NAMES), stale=st.sampled_from((0, 0, 0, 1)),
        timeout_ms=st.sampled_from((None, 0, 500, 30_000)), fate=FATES,
    )
    def wait(self, pick: int, name: str, stale: int, timeout_ms: int | None, fate: str) -> None:
        """An attempt ends in a wait for a signal, perhaps for one that came before."""
        waits = {"kind": "signal", "name": name, "timeout_ms": timeout_ms}
        self._say(pick, stale, "suspended", fate, waits=waits)

    @rule(
        user=st.sampled_from(USERS), name=st.sampled_from(IDS), type=st.sampled_from(TYPES),
        signal=st.sampled_from(NAMES), value=st.integers(0, 9), fate=FATES,
    )
    def signal(
        self, user: str, name: str, type: str, signal: str, value: int, fate: str
    ) -> None:
        """Whoever the job is, and whatever it does: most come early, twice or late."""
        body = {
            "command": "signal", "user_id": user, "job_id": f"{type}{name}", "name": signal,
            "value": value,
        }
        self._take(Input(TOPICS.commands, orjson.dumps(body)), fate)

    def _say(self, pick: int, stale: int, kind: str, fate: str, **facts: Any) -> None:
        jobs = self.rig.in_flight()
        told = outcome_of(jobs[pick % len(jobs)], kind, **facts)
        told["epoch"] -= stale
        given = Input(TOPICS.outcomes, pack([told], incarnation=self.incarnation))
        self._take(given, fate)

    def _take(self, given: Input, fate: str) -> None:
        """The input joins the others; then, by `fate`, the group ends in one way or another."""
        self.inputs.append(given)
        match fate:
            case "commit":
                self.commit()
            case "abort":
                self.abort_then_commit()
            case "crash":
                self.crash_and_restore()

    # --- the world ---

    @rule(ms=st.sampled_from((-60_000, -1, 1, 50, 1_000, 2_500, 6_000, 31_000)))
    def move_clock(self, ms: int) -> None:
        self.now_ms += ms
        self.commit()

    @rule(slots=st.sampled_from((0, 1, 2, 8)))
    def resize(self, slots: int) -> None:
        self.rig.slots = slots

    @rule(is_there=st.booleans())
    def change_worker(self, is_there: bool) -> None:
        self.incarnation += 1
        self.rig.alive = {WORKER: self.incarnation} if is_there else {}

    @rule()
    def define_late(self) -> None:
        self.rig.definitions["late"] = DEFINITIONS["late"]

    # --- groups ---

    def commit(self) -> None:
        records = self.rig.records(self.inputs)
        self.inputs = []
        clock_before = self.rig.engine.state.clock_ms
        epochs = {job.key: job.epoch for job in self.rig.engine.state.jobs.values()}
        events = self.rig.commit(records, self.now_ms)
        assert self.rig.engine.state.clock_ms >= clock_before
        _no_stale_outcome_wins(records, events, epochs)

    def abort_then_commit(self) -> None:
        """An aborted group leaves no trace, and done again its inputs lead to the same."""
        records = self.rig.records(self.inputs)
        self.inputs = []
        before = observable(self.rig.engine.state)
        first, _ = self.rig.decide(records, self.now_ms)
        self.rig.engine.rollback()
        assert observable(self.rig.engine.state) == before
        second, _ = self.rig.decide(records, self.now_ms)
        assert _caused_by_inputs(first) == _caused_by_inputs(second)
        self.rig.engine.commit()
        self.rig.taken += records
        self.rig.write(second)

    def crash_and_restore(self) -> None:
        """A group that was never committed, then a new owner: inputs are read again."""
        records = self.rig.records(self.inputs)
        self.inputs = []
        self.rig.decide(records, self.now_ms)
        self.rig.engine = self.rig.restored(self.now_ms)
        self.rig.commit(records, self.now_ms)

    @precondition(lambda self: self.rig.taken)
    @rule(pick=st.integers(0, 999))
    def deliver_again(self, pick: int) -> None:
        """A record that was decided before changes nothing, however often it comes."""
        topic, record = self.rig.taken[pick % len(self.rig.taken)]
        self.rig.engine.begin(self.now_ms)
        assert not self.rig.engine.take(topic, 0, record)
        assert not self.rig.engine.state.has_changes
        assert not len(self.rig.engine.seal())
        self.rig.engine.rollback()

    @invariant()
    def all_agree(self) -> None:
        if hasattr(self, "rig"):
            self.rig.check()

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self._be_kind()

    def _be_kind(self) -> None:
        """Workers are there and succeed: all that was accepted ends."""
        rig = self.rig
        rig.slots, rig.alive = 8, {WORKER: self.incarnation}
        self.now_ms = max(self.now_ms, rig.engine.state.clock_ms)
        for _ in range(KIND_GROUPS_MAX):
            rig.commit(rig.records(self.inputs), self.now_ms)
            self.inputs = [
                Input(
                    TOPICS.outcomes,
                    pack([outcome_of(job, "succeeded")], incarnation=self.incarnation),
                )
                for job in rig.in_flight()
            ]
            self.inputs += [
                Input(TOPICS.commands, orjson.dumps(_signal_for(job)))
                for job in rig.engine.state.jobs.values() if _waits_for_signal(job)
            ]
            if not self.inputs:
                live = rig.engine.state.jobs.values()
                if all(job.state is State.FAILED for job in live):
                    break
                self.now_ms = max(self.now_ms + 100, rig.engine.next_tick_at())
        rig.check()
        for trace in rig.fold.jobs.values():
            assert not trace.is_live, "\n".join(trace.story())


def _waits_for_signal(job: Job) -> bool:
    return job.waits_for is not None and job.waits_for[:2] == ("suspension", "signal")


def _signal_for(job: Job) -> dict[str, Any]:
    assert job.waits_for is not None
    name = job.waits_for[2]
    return {
        "command": "signal", "user_id": job.key[0], "job_id": job.key[1], "name": name, "value": 1
    }


def _caused_by_inputs(out: list[Any]) -> list[Any]:
    """The events that records led to: what time led to may come in another order."""
    events = [orjson.loads(value) for topic, _, _, value, _ in out if topic == TOPICS.events]
    return [event for event in events if event["cause"] is not None]


def _no_stale_outcome_wins(
    records: list[Any], events: list[dict[str, Any]], epochs: dict[JobKey, int]
) -> None:
    for topic, record in records:
        if topic != TOPICS.outcomes:
            continue
        told = orjson.loads(record.value)["outcomes"][0]
        if told["epoch"] < epochs.get((told["user_id"], told["job_id"]), 0):
            led_to = {
                event["event"]
                for event in events
                if event["cause"] == {"topic": topic, "partition": 0, "offset": record.offset}
            }
            assert led_to <= {"outcome_ignored"}


# No shrinking: it takes minutes here, and the steps of a failure are printed as they were.
TestPartitionMachine = PartitionMachine.TestCase
TestPartitionMachine.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, derandomize=True,
    database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate],
)
