"""A cancel before its request is kept, and applied on every path that the request may take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson
import pytest

from tests.chaos.rawlog import RawRecord
from tests.unit.core_kit import NOW
from tests.unit.partition_kit import (
    TOPICS,
    Input,
    Scene,
    events_in,
    outcome,
    outcomes,
    plain,
    request,
)
from tidemill.schemas.batch_builder import OutRecord
from tidemill.streams.partition import FORGET_EVERY_MS, Partition
from tidemill.streams.partitioner import partition_of
from tidemill.streams.store import kept_cancels
from tidemill.streams.store.kept_cancels import (
    KEPT_MS,
    KeptCancel,
    KeptCancels,
    cancel_value,
    read_cancel,
)
from tidemill.streams.store.state import PartitionState

PLACE: Final = {"topic": TOPICS.commands, "partition": 0, "offset": 0}
BINARY: Final = (
    ("ce_specversion", b"1.0"), ("ce_id", b"j"), ("ce_source", b"/shop"), ("ce_type", b"t"),
)
STRUCTURED: Final = (("content-type", b"application/cloudevents+json"),)


def cancel(job_id: str = "j", user_id: str = "u", **fields: object) -> Input:
    body = {"command": "cancel", "user_id": user_id, "job_id": job_id, **fields}
    return TOPICS.commands, orjson.dumps(body)


def redrive(job_id: str = "j") -> Input:
    body = {"command": "redrive", "user_id": "u", "job_id": job_id}
    return TOPICS.commands, orjson.dumps(body)


def told(records: Sequence[OutRecord], job_id: str = "j") -> list[tuple[str, str | None]]:
    events = events_in(records)
    return [(each["event"], each["reason"]) for each in events if each["job_id"] == job_id]


def structured() -> bytes:
    attributes = {"specversion": "1.0", "id": "j", "source": "/shop", "type": "t"}
    return orjson.dumps({**attributes, "data": {"user_id": "u"}})


REQUESTS: Final[dict[str, tuple[bytes, tuple[tuple[str, bytes], ...]]]] = {
    "plain": (request("j")[1], ()),
    "with every field": (request("j", priority="high", unique_key="k", tags=["a"])[1], ()),
    "to run later": (request("j", run_at=NOW + 3_600_000)[1], ()),
    "expired": (request("j", expires_at=NOW - 1)[1], ()),
    "of an unknown type": (request("j", type="nobody-has-it")[1], ()),
    "for a queue without workers": (request("j", queue="nowhere")[1], ()),
    "refused": (request("j", surprise=1)[1], ()),
    "refused, nothing known of its type": (request("j", type=7)[1], ()),
    "binary CloudEvent": (b'{"user_id":"u"}', BINARY),
    "structured CloudEvent": (structured(), STRUCTURED),
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize(
    "apart", ["one group", "two groups", "a restore between", "an abort first"]
)
def test_a_kept_cancel_ends_the_job_when_its_request_arrives(name: str, apart: str) -> None:
    value, headers = REQUESTS[name]
    scene = Scene(plain())
    asked = (TOPICS.requested, value)
    if apart == "one group":
        records = scene.group(NOW, cancel(), asked, headers=headers)
    else:
        if apart == "an abort first":
            scene.group(NOW, cancel(), is_committed=False)
            scene._offsets.clear()
        first = scene.group(NOW, cancel())
        assert told(first) == [("cancel_kept", None)]
        if apart == "a restore between":
            scene.restore(NOW)
        records = scene.group(NOW + 1, asked, headers=headers)
    requested, cancelled = [
        event for event in events_in(records) if event["event"] != "cancel_kept"
    ]
    assert (requested["event"], requested["cause"]["topic"]) == ("requested", TOPICS.requested)
    assert (cancelled["event"], cancelled["reason"]) == ("cancelled", "cancelled_by_command")
    assert cancelled["cause"] == PLACE
    assert cancelled["sequence"] == 2
    ends = [record for record in records if record[0] == TOPICS.completed]
    assert [orjson.loads(end[3] or b"")["status"] for end in ends] == ["cancelled"]
    assert not [record for record in records if "ready" in record[0]]
    assert len(scene.state.cancels) == 0
    # It is spent: the id is the cancelled job's now.
    again = scene.group(NOW + 2, asked, headers=headers)
    assert [kind for kind, _ in told(again)] in (["duplicate_ignored"], ["conflict_ignored"])


def test_a_repeat_of_a_request_that_was_cancelled_before_it_came_is_a_repeat() -> None:
    scene = Scene(plain())
    records = scene.group(NOW, cancel(), request("j"), request("j"), request("j"))
    kinds = [kind for kind, _ in told(records)]
    assert kinds == ["cancel_kept", "requested", "cancelled", *["duplicate_ignored"] * 2]


def test_a_cancel_of_a_child_that_is_not_born_yet() -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j"))
    scene.group(NOW + 1, cancel("j.1.0"), cancel("mine"))
    children = [{"type": "t"}, {"type": "t", "job_id": "mine"}, {"type": "t", "job_id": "other"}]
    records = scene.group(
        NOW + 2, outcomes(outcome(("u", "j"), "succeeded", children=children))
    )
    for child in ("j.1.0", "mine"):
        assert [kind for kind, _ in told(records, child)] == ["requested", "cancelled"]
    assert [kind for kind, _ in told(records, "other")][:2] == ["requested", "dispatched"]


def test_a_cancel_and_a_request_that_are_both_forwarded() -> None:
    home = partition_of("u", 2)
    engines = {number: Partition(number, 2, TOPICS, PartitionState()) for number in (0, 1)}
    for engine in engines.values():
        engine.restored(NOW)
        engine.begin(NOW)
        engine.define(plain())
    other = engines[1 - home]
    for offset, (topic, value) in enumerate((cancel(actor="ann"), request("j"))):
        record = RawRecord(topic, other.number, offset, NOW, b"k", value, ())
        other.take(topic, other.number, record)
    forwards = [record for record in other.seal() if record[0] == TOPICS.internal]
    for offset, (topic, _, key, text, headers) in enumerate(forwards):
        engines[home].take(
            topic, home, RawRecord(topic, home, offset, NOW, key, text, tuple(headers or ()))
        )
    kept, requested, cancelled = events_in(list(engines[home].seal()))
    place = {"topic": TOPICS.commands, "partition": other.number, "offset": 0}
    assert (kept["event"], kept["cause"]) == ("cancel_kept", place)
    assert (requested["event"], requested["cause"]["topic"]) == ("requested", TOPICS.requested)
    assert (cancelled["event"], cancelled["cause"]) == ("cancelled", place)
    assert cancelled["data"] == {"actor": "ann", "reason": None}


def test_what_the_caller_is_told() -> None:
    scene = Scene(plain())
    (kept,) = events_in(scene.group(NOW, cancel(actor="ann", reason="wrong one")))
    assert (kept["event"], kept["sequence"], kept["cause"]) == ("cancel_kept", None, PLACE)
    assert (kept["state_before"], kept["state_after"]) == (None, None)
    assert kept["data"] == {"actor": "ann", "reason": "wrong one"}
    assert kept["due_at"].startswith("2025-10-10T")  # a day after NOW
    assert not [record for record in scene.group(NOW, redrive()) if record[0] == TOPICS.events]
    letters = [record for record in scene.group(NOW, redrive()) if record[0] == TOPICS.dead]
    assert [dict(each[4] or ())["tidemill.dead.error.code"] for each in letters] == [b"UNKNOWN_JOB"]


def test_the_newest_of_several_cancels_is_kept_and_each_is_answered() -> None:
    scene = Scene(plain())
    first = scene.group(NOW, cancel(), cancel())
    assert [kind for kind, _ in told(first)] == ["cancel_kept"] * 2
    events = events_in(scene.group(NOW + 1, request("j")))
    assert events[-1]["cause"] == {**PLACE, "offset": 1}


def test_a_second_cancel_of_a_job_that_was_asked_to_stop_is_answered() -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j"))
    records = scene.group(NOW + 1, cancel(), cancel())
    assert told(records) == [("cancel_requested", None), ("command_refused", "same_body")]


@pytest.mark.parametrize("late_ms", [0, 1, KEPT_MS])
def test_a_cancel_whose_request_never_came_is_forgotten_and_the_log_says_so(late_ms: int) -> None:
    scene = Scene(plain())
    scene.group(NOW, cancel(), cancel("k"))
    before = scene.group(NOW + KEPT_MS - 1)
    assert not told(before)
    records = scene.group(NOW + KEPT_MS + FORGET_EVERY_MS + late_ms)
    assert told(records) == [("command_refused", "unknown_job")]
    assert told(records, "k") == [("command_refused", "unknown_job")]
    (event, _) = events_in(records)
    assert (event["cause"], event["state_after"]) == (PLACE, None)
    assert not [key for key in scene.rows if key.startswith(b"c")]
    after = scene.group(NOW + 2 * KEPT_MS + FORGET_EVERY_MS, request("j"))
    assert [kind for kind, _ in told(after)] == ["requested", "dispatched"]


def test_forgetting_goes_in_bounded_steps() -> None:
    scene = Scene(plain())
    scene.group(NOW, *(cancel(f"j{number}") for number in range(2_500)))
    late = NOW + KEPT_MS + FORGET_EVERY_MS
    counts = [len(events_in(scene.group(late + 50 * step))) for step in range(4)]
    assert counts == [1_000, 1_000, 500, 0]


@pytest.mark.parametrize(
    ("bound", "most"),
    [("COUNT_MAX", 4), ("USER_COUNT_MAX", 4), ("BYTES_MAX", 4 * 203), ("USER_BYTES_MAX", 4 * 203)],
)
def test_the_oldest_makes_room_and_the_log_says_so(
    bound: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not str(kept_cancels.__file__).endswith(".py"):
        pytest.skip("a bound of compiled code cannot be replaced")
    monkeypatch.setattr(kept_cancels, bound, most)
    scene = Scene(plain())
    ids = [f"j{number}" for number in range(7)]
    records = scene.group(NOW, *(cancel(name) for name in ids))
    for name in ids[:3]:
        wanted = [("cancel_kept", None), ("command_refused", "too_many_cancels")]
        assert told(records, name) == wanted
    for name in ids[3:]:
        assert told(records, name) == [("cancel_kept", None)]
    assert [kept.key[1] for kept in scene.state.cancels] == ids[3:]
    scene.restore(NOW)
    assert [kept.key[1] for kept in scene.state.cancels] == ids[3:]


def test_one_users_cancels_push_nobody_elses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    if not str(kept_cancels.__file__).endswith(".py"):
        pytest.skip("a bound of compiled code cannot be replaced")
    monkeypatch.setattr(kept_cancels, "USER_COUNT_MAX", 3)
    scene = Scene(plain())
    scene.group(NOW, cancel("j", "quiet"))
    scene.group(NOW + 1, *(cancel(f"j{number}", "loud") for number in range(50)))
    assert sorted(kept.key[0] for kept in scene.state.cancels) == ["loud"] * 3 + ["quiet"]


def test_a_kept_cancel_is_for_its_own_user_and_job_alone() -> None:
    scene = Scene(plain())
    scene.group(NOW, cancel("j", "v"), cancel("k"))
    records = scene.group(NOW + 1, request("j"))
    assert [kind for kind, _ in told(records)] == ["requested", "dispatched"]
    assert len(scene.state.cancels) == 2


def test_a_job_whose_request_was_refused_has_ended_for_a_cancel() -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j", surprise=1))
    records = scene.group(NOW + 1, cancel())
    assert told(records) == [("command_refused", "already_ended")]
    assert len(scene.state.cancels) == 0


def test_a_row_gives_back_what_was_kept() -> None:
    kept = KeptCancel(("ü/1", "j"), NOW, None, "why", ("jobs.commands", 3, 2**40))
    found = read_cancel(cancel_value(kept))
    for name in ("key", "kept_at", "actor", "reason", "cause", "size"):
        assert getattr(found, name) == getattr(kept, name)
    with pytest.raises(ValueError, match="version 2"):
        read_cancel(cancel_value(kept).replace(b"[1,", b"[2,", 1))


def test_an_undone_group_leaves_the_order_as_it_was() -> None:
    found = KeptCancels()
    made = [KeptCancel(("u", f"j{n}"), NOW + n, None, None, ("c", 0, n)) for n in range(6)]
    for each in made[:4]:
        found.keep(each)
    found.commit()
    found.drop(("u", "j1"))
    found.keep(KeptCancel(("u", "j0"), NOW + 9, None, None, ("c", 0, 9)))
    found.keep(made[5])
    found.rollback()
    assert list(found) == made[:4]
    assert [each.key[1] for each in found.too_old(NOW + KEPT_MS + 1, at_most=9)] == ["j0", "j1"]
