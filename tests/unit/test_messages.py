"""Messages between partitions: sending, bounds, and what becomes of one that cannot be taken."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import orjson
import pytest

from tests.chaos.rawlog import RawRecord
from tests.unit.core_kit import NOW
from tests.unit.message_kit import RELAY, TakenMessages, read_message, relays
from tests.unit.partition_kit import (
    TOPICS,
    Input,
    Scene,
    events_in,
    events_of,
    keep,
    plain,
    request,
    restored,
)
from tidemill.schemas.batch_builder import OutRecord
from tidemill.schemas.words import EventKind
from tidemill.streams import messages as messages_
from tidemill.streams.commands import Cancel
from tidemill.streams.decision import DECISION_BYTES, NeedsNewer
from tidemill.streams.envelope import (
    KIND_HEADER,
    MESSAGE_BYTES_MAX,
    NEEDS_HEADER,
    ORIGIN_HEADER,
    POLICY_HEADER,
    VERSION_HEADER,
    message_headers,
)
from tidemill.streams.messages import (
    MessagesWithoutEnd,
    UnsendableMessage,
)
from tidemill.streams.partition import DECISIONS_MAX, Partition
from tidemill.streams.partitioner import partition_of
from tidemill.streams.policies.base import Policy
from tidemill.streams.turn import Turn

PARTITIONS: Final = 4
NUMBER: Final = 1
Headers = tuple[tuple[str, bytes | None], ...]
ORIGIN: Final = (ORIGIN_HEADER, b"jobs.internal/2/7")
KIND: Final = (KIND_HEADER, b"message")
TO_RELAY: Final = (POLICY_HEADER, RELAY.encode())
BODY: Final = b'{"name":"m","plan":[]}'


def engine(rows: dict[bytes, bytes] | None = None) -> Partition:
    return restored(
        (rows or {}).items(), NOW, number=NUMBER, partitions=PARTITIONS, policies=relays
    )


def messages_in(records: Sequence[OutRecord]) -> list[OutRecord]:
    return [record for record in records if record[0] == TOPICS.internal]


def scene() -> Scene:
    return Scene(plain(), partitions=PARTITIONS, policies=relays)


def taken(scene: Scene) -> dict[int, tuple[str, ...]]:
    """What the relay of a new owner knows."""
    table = scene.restored(NOW).state._by_kind[b"r"]
    assert isinstance(table, TakenMessages)
    return dict(table.values)


def user_of_home_0() -> str:
    return next(f"u{n}" for n in range(100) if partition_of(f"u{n}", PARTITIONS) == 0)


# --- sending ---


@pytest.mark.parametrize(
    "key", ["u", "schedule:nightly", "queue:mail", "", "a" * 5_000, "\U0001f409", "model:gpt-4o"]
)
def test_a_message_goes_to_the_partition_of_its_key(key: str) -> None:
    one = engine()
    one.begin(NOW)
    one.messages.turn.send(key, RELAY, {"name": "m", "plan": []})
    ((topic, partition, record_key, value, headers),) = messages_in(list(one.seal()))
    assert (topic, partition) == (TOPICS.internal, partition_of(key, PARTITIONS))
    assert (record_key, value) == (key.encode(), BODY)
    assert headers == [
        (ORIGIN_HEADER, b"jobs.internal/1/1"), KIND, (VERSION_HEADER, b"1"), TO_RELAY,
        (NEEDS_HEADER, b"0.3.0"),
    ]


def test_a_message_to_all_goes_to_each_partition_and_to_its_own() -> None:
    one = engine()
    one.begin(NOW)
    one.messages.turn.send_to_all(RELAY, {"name": "m", "plan": []})
    sent = messages_in(list(one.seal()))
    assert [record[1] for record in sent] == list(range(PARTITIONS))
    assert {record[2] for record in sent} == {None}


def test_messages_are_numbered_through_aborts_and_restores() -> None:
    rows: dict[bytes, bytes] = {}
    one = engine()
    numbers: list[int] = []
    for step in range(12):
        one.begin(NOW + step)
        for _ in range(step % 3):
            one.messages.turn.send("k", RELAY, {"name": "m", "plan": []})
        out = list(one.seal())
        if step % 4 == 1:
            one.rollback()
            continue
        one.commit()
        keep(rows, out)
        numbers += [read_message(m[1], m[3], m[4]).number for m in messages_in(out)]
        if step % 4 == 2:
            one = engine(rows)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 5


def test_a_partition_that_sends_nothing_has_the_position_row_of_always() -> None:
    here = scene()
    here.group(NOW, request("j", user_id=user_of_home_0()))
    assert set(orjson.loads(here.rows[b"p"])) == {"applied", "clock", "accepted"}


@pytest.mark.parametrize(
    ("policy", "body", "named"),
    [
        ("nobody", {}, "'nobody'"),
        (RELAY, {"x": {1, 2}}, "no JSON"),
        (RELAY, {"x": 2**70}, "no JSON"),
        (RELAY, {"x": "y" * MESSAGE_BYTES_MAX}, str(MESSAGE_BYTES_MAX)),
    ],
)
@pytest.mark.parametrize("to_all", [True, False])
def test_what_no_partition_could_take_is_not_sent(
    policy: str, body: dict[str, Any], named: str, to_all: bool
) -> None:
    one = engine()
    one.begin(NOW)
    turn = one.messages.turn
    send = turn.send_to_all if to_all else partial(turn.send, "k")
    with pytest.raises(UnsendableMessage) as raised:
        send(policy, body)
    assert named in str(raised.value)
    assert not list(one.seal())


def test_the_largest_message_arrives() -> None:
    here = scene()
    frame = len(orjson.dumps({"name": "", "plan": []}))
    key = user_of_home_0()
    body = {"name": "x" * (MESSAGE_BYTES_MAX - frame - len(key)), "plan": []}
    here.engine.begin(NOW)
    here.engine.messages.turn.send(key, RELAY, body)
    with pytest.raises(UnsendableMessage):
        here.engine.messages.turn.send(key + "1", RELAY, body)
    ((_, _, _, value, headers),) = messages_in(list(here.engine.seal()))
    here.engine.commit()
    here.group(NOW, (TOPICS.internal, value or b""), headers=tuple(headers or ()))
    assert taken(here) == {0: (body["name"],)}


# --- bounds ---


def test_messages_cost_decisions_of_the_group() -> None:
    """So many that nothing else is begun in their group, and all of it in the next ones."""
    here = scene()
    user = user_of_home_0()
    rooms, here.rooms = here.rooms, {}
    here.group(NOW, request("j", user_id=user))
    here.rooms = rooms
    plan = [["k", []]] * (DECISIONS_MAX + 1)
    body = orjson.dumps({"name": "m", "plan": plan})
    wrote = here.group(NOW, (TOPICS.internal, body), headers=(ORIGIN, KIND, TO_RELAY))
    assert len(messages_in(wrote)) == DECISIONS_MAX + 1
    assert not events_in(wrote)
    assert here.engine.next_tick_at() == 0
    assert events_of(here.group(NOW)) == ["dispatched"]


@pytest.mark.parametrize(
    ("plan", "bytes_each"), [([], 0), ([], 8 * DECISION_BYTES), ([["k", []]] * 9, 0)]
)
def test_what_a_group_leads_to_ends_its_share_of_the_input(
    plan: list[Any], bytes_each: int
) -> None:
    one = engine()
    body = orjson.dumps({"name": "x" * bytes_each, "plan": plan})
    records = [
        RawRecord(TOPICS.internal, NUMBER, offset, NOW, None, body, (ORIGIN, KIND, TO_RELAY))
        for offset in range(3 * DECISIONS_MAX)
    ]
    each = 1 + len(body) // DECISION_BYTES + len(plan)
    groups = 0
    is_over = False
    while not is_over:
        one.begin(NOW)
        before = one.state.applied.get(TOPICS.internal, -1)
        is_over = one.take_all(TOPICS.internal, NUMBER, records)
        one.tick()
        one.seal()
        one.commit()
        groups += 1
        count = one.state.applied[TOPICS.internal] - before
        assert is_over or count == -(-DECISIONS_MAX // each)
    assert groups == -(-len(records) // -(-DECISIONS_MAX // each))
    assert one.state.applied[TOPICS.internal] == len(records) - 1


@pytest.mark.interpreted
def test_messages_without_an_end_are_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages_, "MESSAGES_MAX", 10)
    one = engine()
    one.begin(NOW)
    for _ in range(10):
        one.messages.turn.send("k", RELAY, {})
    with pytest.raises(MessagesWithoutEnd, match=RELAY):
        one.messages.turn.send("k", RELAY, {})
    one.rollback()
    one.begin(NOW)
    one.messages.turn.send("k", RELAY, {})
    assert read_message(0, *messages_in(list(one.seal()))[0][3:]).number == 1


# --- taking ---


@pytest.mark.parametrize(
    "headers",
    [
        (ORIGIN, KIND, TO_RELAY),
        (ORIGIN, KIND, (VERSION_HEADER, b"1"), TO_RELAY, (NEEDS_HEADER, b"0.3.0")),
        (ORIGIN, KIND, (VERSION_HEADER, None), TO_RELAY),
        (("traceparent", b"x"), ("tidemill-policy", b"other"), ORIGIN, KIND, TO_RELAY),
        (ORIGIN, KIND, TO_RELAY, ("tidemill-later", b"x")),
    ],
)
def test_a_message_is_handed_to_its_policy_once(headers: Headers) -> None:
    here = scene()
    undone = here.group(NOW, (TOPICS.internal, BODY), headers=headers, is_committed=False)
    assert not [record for record in undone if record[0] == TOPICS.dead]
    assert taken(here) == {}
    here.group(NOW, (TOPICS.internal, BODY), headers=headers)
    assert taken(here) == {2: ("m",)}
    # The same record again, to the same owner and to a new one.
    again = RawRecord(TOPICS.internal, 0, 1, NOW, None, BODY, headers)
    assert not here.engine.take(TOPICS.internal, 0, again)
    assert not here.restored(NOW).take(TOPICS.internal, 0, again)


def test_what_a_message_means_for_jobs_is_decided_in_its_group() -> None:
    class Canceller(Policy):
        def on_message(self, turn: Turn, origin: int, body: dict[str, Any]) -> None:
            key = (body["user"], "j")
            turn.command(key, Cancel(key, self.id, None, turn.cause))

    def policies(number: int) -> Sequence[Policy]:
        return (Canceller("canceller"),)

    here = Scene(plain(), partitions=PARTITIONS, policies=policies)
    user = user_of_home_0()
    here.rooms = {}
    here.group(NOW, request("j", user_id=user))
    body = orjson.dumps({"user": user})
    headers = (ORIGIN, KIND, (POLICY_HEADER, b"canceller"))
    (event,) = events_in(here.group(NOW, (TOPICS.internal, body), headers=headers))
    assert event["event"] == EventKind.CANCELLED
    assert event["cause"] == {"topic": TOPICS.internal, "partition": 0, "offset": 0}


# --- what cannot be taken ---


def check_buried(here: Scene, given: Input, headers: Headers, code: bytes) -> None:
    """It is on jobs.dead as it was, changes nothing, and the next one is taken."""
    records = here.group(NOW, given, headers=headers)
    (letter,) = [record for record in records if record[0] == TOPICS.dead]
    assert letter[3] == given[1]
    told = dict(letter[4] or ())
    assert told["tidemill.dead.error.code"] == code
    assert told["tidemill.dead.topic"] == TOPICS.internal.encode()
    assert list(letter[4] or ())[: len(headers)] == list(headers)
    assert not events_in(records)
    assert not messages_in(records)
    assert taken(here) == {}
    here.group(NOW, (TOPICS.internal, BODY), headers=(ORIGIN, KIND, TO_RELAY))
    assert taken(here) == {2: ("m",)}


@pytest.mark.parametrize(
    "value",
    [
        None, b"", b"\xff", b"{", b"[]", b"7", b"null", b'"text"', b'[{"name":"m","plan":[]}]',
        b"[" * 10_000, b'{"name":"m","plan":[]}x', b'{"name":1,"plan":[]}', b"{}",
        request("j")[1], BODY + b" " * MESSAGE_BYTES_MAX,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_body_that_no_policy_can_take_is_buried(value: bytes | None) -> None:
    given: Any = (TOPICS.internal, value)
    check_buried(scene(), given, (ORIGIN, KIND, TO_RELAY), b"BROKEN_MESSAGE")


@pytest.mark.parametrize(
    "headers",
    [
        (ORIGIN, KIND),
        (ORIGIN, KIND, (POLICY_HEADER, None)),
        (ORIGIN, KIND, (POLICY_HEADER, b"")),
        (ORIGIN, KIND, (POLICY_HEADER, b"a policy")),
        (ORIGIN, KIND, (POLICY_HEADER, b"\xff")),
        (ORIGIN, KIND, (POLICY_HEADER, b"x" * 65)),
        (TO_RELAY, ORIGIN, KIND),  # a stranger's header
        ((ORIGIN_HEADER, b"jobs.internal/4/1"), KIND, TO_RELAY),
        ((ORIGIN_HEADER, b"jobs.internal/999999999999999999/1"), KIND, TO_RELAY),
        ((ORIGIN_HEADER, b"jobs.requested/1/1"), KIND, TO_RELAY),
        ((ORIGIN_HEADER, b"other.jobs.internal/1/1"), KIND, TO_RELAY),
    ],
)
def test_an_envelope_of_a_message_that_no_ledger_wrote_is_buried(headers: Headers) -> None:
    check_buried(scene(), (TOPICS.internal, BODY), headers, b"BROKEN_MESSAGE")


@pytest.mark.parametrize(
    "headers",
    [
        (KIND, TO_RELAY),
        ((ORIGIN_HEADER, None), KIND, TO_RELAY),
        (KIND, TO_RELAY, (ORIGIN_HEADER, b"nowhere")),
        *(
            (ORIGIN, kind, (VERSION_HEADER, version), TO_RELAY)
            for version in (b"", b"0", b"01", b"-1", b"1.0", b"v1", b"\xff", b"1" * 10, b"1\n")
            for kind in (KIND, (KIND_HEADER, b"request"), (KIND_HEADER, b"schedule"))
        ),
    ],
)
def test_an_envelope_that_no_ledger_wrote_is_buried(headers: Headers) -> None:
    check_buried(scene(), (TOPICS.internal, BODY), headers, b"BROKEN_FORWARD")


@pytest.mark.parametrize("value", [BODY, request("j")[1], b"\xff", b"[]", None])
@pytest.mark.parametrize(
    ("headers", "parts"),
    [
        ((KIND, (POLICY_HEADER, b"permits")), ("the policy 'permits'",)),
        ((KIND, (POLICY_HEADER, b"relay2")), ("the policy 'relay2'",)),
        ((KIND, (VERSION_HEADER, b"2"), TO_RELAY), ("in version 2", "'message'")),
        ((KIND, (VERSION_HEADER, b"999999999")), ("version 999999999", "'message'")),
        (((KIND_HEADER, b"request"), (VERSION_HEADER, b"2")), ("version 2", "'request'")),
        (((KIND_HEADER, b"command"), (VERSION_HEADER, b"7")), ("version 7", "'command'")),
        (((VERSION_HEADER, b"2"),), ("version 2", "'request'")),
        (((KIND_HEADER, b"broadcast"), TO_RELAY), ("the kind 'broadcast'",)),
    ],
)
@pytest.mark.parametrize(
    ("needs", "named"), [(None, "a later version"), (b"0.9.0", "Tidemill 0.9.0 or later")]
)
def test_what_came_later_stops_the_partition_and_names_the_version(
    value: bytes | None, headers: Headers, parts: tuple[str, ...], needs: bytes | None, named: str
) -> None:
    here = scene()
    given: Any = (TOPICS.internal, value)
    wanted = () if needs is None else ((NEEDS_HEADER, needs),)
    with pytest.raises(NeedsNewer) as raised:
        here.group(NOW, given, headers=(ORIGIN, *headers, *wanted))
    for part in (*parts, named, "jobs.internal[0]@0"):
        assert part in str(raised.value)
    here.engine.rollback()
    assert TOPICS.internal not in here.state.applied


@pytest.mark.parametrize(
    "policy", ["rate_limit", "uniqueness", "expiry", "unknown_type", "rescue", "backoff"]
)
def test_a_policy_that_takes_no_messages_yet_stops_the_partition(policy: str) -> None:
    here = scene()
    assert policy in {one.id for one in here.state.policies.all}
    headers = (ORIGIN, KIND, (POLICY_HEADER, policy.encode()), (NEEDS_HEADER, b"0.9.0"))
    with pytest.raises(NeedsNewer) as raised:
        here.group(NOW, (TOPICS.internal, BODY), headers=headers)
    for part in (repr(policy), "Tidemill 0.9.0 or later", "jobs.internal[0]@0"):
        assert part in str(raised.value)


def test_a_policy_that_refuses_changes_nothing() -> None:
    """The relay raises for it; the reason is in the dead letter."""
    here = scene()
    headers = (ORIGIN, KIND, TO_RELAY)
    records = here.group(NOW, (TOPICS.internal, b'{"name":[]}'), headers=headers)
    (letter,) = [record for record in records if record[0] == TOPICS.dead]
    told = dict(letter[4] or ())
    assert b"it has no name and plan" in (told["tidemill.dead.error.message"] or b"")
    assert told["tidemill.dead.stage"] == b"message"


def test_an_older_ledger_refuses_a_message_and_names_the_version() -> None:
    """What its headers must have, since before messages: an origin, a kind, what it needs."""
    headers = message_headers(
        policy=RELAY, internal=TOPICS.internal, partition=3, number=9, needs="0.3.0"
    )
    assert headers[0] == ("tidemill-origin", b"jobs.internal/3/9")
    assert headers[1] == ("tidemill-kind", b"message")
    assert dict(headers)["tidemill-needs"] == b"0.3.0"
