"""From events to bytes: what is written keeps the public contracts."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.unit.core_kit import (
    CAUSE,
    DEFAULT,
    FATAL,
    KNOWN,
    NOW,
    WAYS,
    after,
    decide,
    job_in,
    report,
    submit,
)
from tests.unit.partition_kit import Scene, events_in, outcome, outcomes, plain, request
from tidemill.schemas.batch_builder import OutRecord
from tidemill.schemas.codec import Refusal
from tidemill.schemas.dead import HEADER_MEANINGS, ORIGINAL_HEADERS_MAX
from tidemill.schemas.event_writer import Event, EventWriter
from tidemill.schemas.events import CompletedJob, JobEvent
from tidemill.schemas.instants import InstantCache, instant_text
from tidemill.schemas.topics import Topics
from tidemill.schemas.wire import PACK_BYTES_MAX, PACK_JOBS_MAX, ControlMessage, ReadyPack
from tidemill.schemas.words import AUDIT_KINDS, ErrorCode, EventKind, State
from tidemill.streams.commands import Dispatch
from tidemill.streams.decision import Accepted
from tidemill.streams.job import Job
from tidemill.streams.output import Output

TOPICS = Topics("p.")
FACTS: dict[str, Any] = {
    "reason": 'why "so"', "error": {"code": "E", "message": "m\n", "retryable": True},
    "worker": ("w\u2028", 1), "due_at": NOW + 5, "wait_ms": 0, "run_ms": 2**40, "cause": CAUSE,
    "data": {"result": orjson.Fragment(b'{"n":[1,null]}')},
}


def written(event: Event) -> dict[str, Any]:
    """The bytes of an event, which has the fields of its contract and no other."""
    value = EventWriter(InstantCache()).write(event)
    JobEvent.model_validate_json(value, extra="forbid")
    body: dict[str, Any] = orjson.loads(value)
    return body


def event(kind: EventKind, *, is_bare: bool, user_id: str = 'u/"1"') -> Event:
    is_audit = kind in AUDIT_KINDS
    return Event(
        kind, user_id, "j\\", "t", "q", "high", NOW, 2, None if is_audit else 3, 1, 4, NOW + 1,
        None if is_bare else State.PENDING, State.RUNNING, index=1 if is_audit else 0,
        **({} if is_bare else FACTS),
    )


LABELS = {"tags", "batch_id", "parent_job_id"}


@pytest.mark.parametrize(
    ("tags", "batch_id", "parent_job_id"),
    [((), None, None), (("a", 'q"'), None, None), ((), "b", None), ((), None, "p/1"),
     (("ü",), "b", "p")],
)
def test_labels_are_with_each_event_of_a_job_that_has_them(
    tags: tuple[str, ...], batch_id: str | None, parent_job_id: str | None
) -> None:
    fields = {"tags": list(tags), "batch_id": batch_id, "parent_job_id": parent_job_id}
    scene = Scene(plain())
    first = scene.group(NOW, request("j", **{k: v for k, v in fields.items() if v}))
    second = scene.group(NOW + 1, outcomes(outcome(("u", "j"), "succeeded")))
    events = events_in([*first, *second])
    assert [event["event"] for event in events][-1] == "succeeded"
    for event in events:
        JobEvent.model_validate_json(orjson.dumps(event), strict=True, extra="forbid")
        found = {name: event.get(name) for name in LABELS}
        if any(fields.values()):
            assert found == fields
        else:
            assert not LABELS & event.keys()


@pytest.mark.parametrize("is_bare", [False, True])
@pytest.mark.parametrize("kind", EventKind)
def test_the_writer_writes_what_the_contract_says(kind: EventKind, is_bare: bool) -> None:
    made = event(kind, is_bare=is_bare)
    body = written(made)
    assert body.keys() == JobEvent.model_fields.keys() - LABELS
    plain = ("job_id", "user_id", "type", "queue", "priority", "incarnation", "run", "sequence",
             "attempt", "epoch", "reason", "error", "worker_id", "wait_ms", "run_ms", "event_id")
    for name in plain:
        assert body[name] == getattr(made, name), name
    assert body["event"] == kind
    assert body["occurred_at"] == instant_text(NOW + 1)
    assert body["due_at"] == (None if is_bare else instant_text(NOW + 5))
    assert (body["state_before"], body["state_after"]) == (
        None if is_bare else "pending", "running"
    )
    cause = None if is_bare else {"topic": "jobs.requested", "partition": 0, "offset": 7}
    assert body["cause"] == cause
    assert body["data"] == (None if is_bare else {"result": {"n": [1, None]}})


def test_ids_of_events_are_unique_whatever_the_ids_hold() -> None:
    """Users and jobs may hold slashes; audits of one record are told apart by their number."""
    ids = set()
    pairs = [
        ('"', "\\u00e9"), ("\u00e9", '\\"'), ("a/b", "c"), ("a", "b/c"), ("a%2Fb", "c"),
        ("a%b", "c"), ("a", "b%2Fc"),
    ]
    for user_id, job_id in pairs:
        for sequence, index in ((1, 0), (2, 0), (None, 1), (None, 2)):
            made = Event(
                EventKind.OUTCOME_IGNORED, user_id, job_id, "t", "q", "low", NOW, 1, sequence, 0,
                0, NOW, None, State.PENDING, cause=CAUSE, index=index,
            )
            assert written(made)["event_id"] == made.event_id
            assert EventWriter(InstantCache()).event_id(made) == made.event_id.encode()
            ids.add(made.event_id)
    assert len(ids) == len(pairs) * 4


def test_one_writer_keeps_jobs_and_causes_apart() -> None:
    writer = EventWriter(InstantCache())
    for user_id in ("a", "b", "a"):
        for kind in (EventKind.REQUESTED, EventKind.DISPATCHED):
            for is_bare in (True, False):
                made = event(kind, is_bare=is_bare, user_id=user_id)
                assert orjson.loads(writer.write(made)) == written(made)


@pytest.mark.parametrize(
    ("epoch_ms", "text"),
    [(0, "1970-01-01T00:00:00.000Z"), (1_764_000_000_123, "2025-11-24T16:00:00.123Z"),
     (10_413_791_999_999, "2299-12-31T23:59:59.999Z")],
)
def test_instants(epoch_ms: int, text: str) -> None:
    assert instant_text(epoch_ms) == text
    cache = InstantCache()
    for _ in range(2):
        assert cache.text(epoch_ms) == text
        assert cache.json(epoch_ms) == f'"{text}"'.encode()
    assert (cache.text(None), cache.json(None)) == (None, b"null")


def test_the_memory_of_instants_is_bounded() -> None:
    cache = InstantCache()
    for n in range(10_000):
        assert cache.text(n) == instant_text(n)
        assert cache.json(n) == f'"{instant_text(n)}"'.encode()
    assert len(cache._texts) <= 4096
    assert len(cache._jsons) <= 4096


# --- the records around them ---------------------------------------------------------------------


def last_event(state: State) -> tuple[Job, Event]:
    """How a job came into `state`."""
    *before, last = WAYS[state]
    job = after(None, *before) if before else None
    decision = decide(job, last, NOW + 50, KNOWN)
    assert isinstance(decision, Accepted)
    return decision.job, decision.events[-1]


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED, State.SKIPPED])
def test_completed(state: State) -> None:
    job, ended = last_event(state)
    output = Output(TOPICS, 3)
    output.completed(job, ended)
    ((topic, partition, key, value, headers),) = output.group()
    assert (topic, partition, key) == ("p.jobs.completed", 3, b"u")
    body = CompletedJob.model_validate_json(value or b"", extra="forbid")
    assert (body.status, body.sequence, body.attempts) == (state, job.sequence, job.attempt)
    assert body.result == (1 if state is State.SUCCEEDED else None)
    assert (body.error is not None) == (state is State.FAILED)
    found = dict(headers or ())
    assert found["ce_id"] == ended.event_id.encode()
    assert found["ce_type"] == f"tidemill.job.{state}".encode()
    assert found["ce_specversion"] == b"1.0"


def test_a_failed_job_is_a_dead_letter_that_can_be_sent_again() -> None:
    job, ended = last_event(State.FAILED)
    output = Output(TOPICS, 0)
    output.dead_job(job, ended)
    ((topic, _, key, value, headers),) = output.group()
    assert (topic, key) == ("p.jobs.dead", b"u")
    body = orjson.loads(value or b"")
    assert (body["type"], body["user_id"], body["job_id"], body["payload"]) == ("t", "u", "j", {})
    found = dict(headers or ())
    assert found.keys() <= HEADER_MEANINGS.keys()
    assert found["tidemill.dead.stage"] == b"attempt"
    assert found["tidemill.dead.error.code"] == b"BROKEN"
    assert found["tidemill.dead.attempts"] == b"1"


def test_a_refused_record_stays_as_it_was() -> None:
    output = Output(TOPICS, 0)
    original: list[tuple[str, bytes | None]] = [(f"h{n}", b"\xff") for n in range(99)]
    output.dead_record(
        topic="jobs.requested", partition=2, offset=9, timestamp=NOW, key=b"\xfe", value=None,
        headers=original, stage="request",
        refusal=Refusal(ErrorCode.EMPTY_RECORD, "m" * 9_999, field="f" * 9_999),
    )
    ((_, _, key, value, headers),) = output.group()
    assert (key, value) == (b"\xfe", None)
    assert headers is not None
    assert headers[:ORIGINAL_HEADERS_MAX] == original[:ORIGINAL_HEADERS_MAX]
    ours = dict(headers[ORIGINAL_HEADERS_MAX:])
    assert ours.keys() <= HEADER_MEANINGS.keys()
    assert ours["tidemill.dead.offset"] == b"9"
    assert all(len(text or b"") <= 500 for text in ours.values())
    assert "tidemill.dead.user_id" not in ours


def test_retry_news_and_words_to_workers() -> None:
    job, retry = last_event(State.RETRYING)
    output = Output(TOPICS, 1)
    output.retry(job, retry)
    output.cancel_word(job)
    word, news = (orjson.loads(value or b"") for _, _, _, value, _ in output.group())
    assert news["due_at"] == instant_text(retry.due_at or 0)
    assert (news["attempt"], news["max_attempts"]) == (1, 3)
    assert ControlMessage.model_validate(word).epoch == 1


def dispatched(count: int, *, size: int = 0) -> list[tuple[Job, Event]]:
    """Jobs just dispatched, each with the event that says so."""
    waiting = after(None, submit(payload={"x": "x" * size}))
    found: list[tuple[Job, Event]] = []
    for _ in range(count):
        decision = decide(waiting, Dispatch(), NOW + 7, KNOWN)
        assert isinstance(decision, Accepted)
        found.append((decision.job, decision.events[-1]))
    return found


def test_a_ready_job_says_what_its_handler_needs() -> None:
    ((job, event),) = dispatched(1)
    ((_, pack),) = packs([(job, event)])
    assert pack.jobs[0].model_dump() == {
        "user_id": "u", "job_id": "j", "type": "t", "run": 1, "attempt": 1, "max_attempts": 3,
        "epoch": 1, "timeout_ms": 300_000, "requested_at": NOW, "dispatched_at": NOW + 7,
        "payload": {"x": ""}, "traceparent": None, "rescues": 0, "memory": None,
    }


def packs(
    jobs: list[tuple[Job, Event]],
    *,
    partitions: tuple[int, ...] = (0, 1),
    workers: int = 1,
    a_pack: int = 8,
) -> list[tuple[int, ReadyPack]]:
    output = Output(TOPICS, 3)
    for job, event in jobs:
        output.dispatch(job, event, DEFAULT)
    output.pack_ready(DEFAULT, partitions, workers=workers, jobs_a_pack=a_pack)
    return [_ready(record) for record in output.group()]


def _ready(record: OutRecord) -> tuple[int, ReadyPack]:
    topic, partition, key, value, _ = record
    assert (topic, key) == ("p.jobs.ready.default", None)
    return partition, ReadyPack.model_validate_json(value or b"")


def test_ready_packs_hold_each_job_once_within_bounds() -> None:
    found = packs(dispatched(300), workers=2, a_pack=1_000)
    assert sum(len(pack.jobs) for _, pack in found) == 300
    assert max(len(pack.jobs) for _, pack in found) <= PACK_JOBS_MAX
    assert {pack.ledger_partition for _, pack in found} == {3}
    assert {partition for partition, _ in found} == {0, 1}
    assert packs([]) == []


def test_one_group_uses_one_ready_partition_a_worker_and_the_next_goes_on() -> None:
    output = Output(TOPICS, 3)
    used: list[set[int]] = []
    for _ in range(8):
        for job, event in dispatched(20):
            output.dispatch(job, event, DEFAULT)
        output.pack_ready(DEFAULT, tuple(range(8)), workers=2, jobs_a_pack=2)
        used.append({_ready(record)[0] for record in output.group()})
        output.clear()
    assert [len(partitions) for partitions in used] == [2] * 8
    assert set().union(*used) == set(range(8))


def test_ledger_partitions_of_one_worker_share_a_ready_partition() -> None:
    used: set[int] = set()
    for number in range(4):
        output = Output(TOPICS, number)
        for _ in range(3):
            output.dispatch(*dispatched(1)[0], DEFAULT)
            output.pack_ready(DEFAULT, (2, 5, 7), workers=1, jobs_a_pack=8)
        used |= {_ready(record)[0] for record in output.group()}
    assert used == {2}


def test_large_payloads_travel_in_small_packs() -> None:
    found = packs(dispatched(5, size=PACK_BYTES_MAX // 2), a_pack=5)
    assert [len(pack.jobs) for _, pack in found] == [1, 1, 1, 1, 1]
    assert len(packs(dispatched(1, size=PACK_BYTES_MAX * 2))) == 1


def test_a_forward_tells_where_the_record_came_from() -> None:
    output = Output(TOPICS, 0)
    output.forward(
        partition=2, key=None, value=b"{}", headers=[("h", b"1")], kind="command",
        origin=("jobs.commands", 0, 5),
    )
    ((topic, partition, key, value, headers),) = output.group()
    assert (topic, partition, key, value) == ("p.jobs.internal", 2, None, b"{}")
    assert headers == [
        ("h", b"1"), ("tidemill-origin", b"jobs.commands/0/5"), ("tidemill-kind", b"command")
    ]
    output.clear()
    assert not len(output.group())


def test_a_quick_job_is_four_events() -> None:
    kinds: list[str] = []
    job: Job | None = None
    for command in (submit(), Dispatch(), report("succeeded", result=None)):
        decision = decide(job, command, NOW, KNOWN)
        assert isinstance(decision, Accepted)
        job = decision.job
        kinds += [made.kind.value for made in decision.events]
    assert kinds == ["requested", "dispatched", "attempt_succeeded", "succeeded"]


def test_the_error_of_a_dead_letter_is_the_job_s() -> None:
    job = job_in(State.FAILED)
    assert job is not None
    assert job.error == FATAL
