"""Who gets which partitions: fit, counts and folding of the group's assignor, without a broker."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from faust.assignor.client_assignment import ClientAssignment, ClientMetadata

from tidemill.agents.runtime.app import create_app
from tidemill.agents.runtime.membership import COUNTS, SUBSCRIBED, GroupAssignor, Subscriptions

INPUTS = ("changelog", "outcomes", "requested")


class Cluster:
    """What a client knows of a cluster."""

    def __init__(self, **counts: int) -> None:
        self.counts = counts

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(range(self.counts.get(topic, 0)))


def assignor(seen: Mapping[str, int] | None = None, **folded: int) -> GroupAssignor:
    made = GroupAssignor(create_app("group", kafka="nowhere:9092", partitions=4))
    known = dict(seen or {})
    made.app = SimpleNamespace(
        folded_topics=folded, tables=made.app.tables, conf=made.app.conf, tracer=None,
        sensors=made.app.sensors,
        seen_counts=lambda topics: {name: known[name] for name in topics if name in known},
    )
    return made


def assigned(leader: GroupAssignor, cluster: Cluster, **members: GroupAssignor) -> dict[str, Any]:
    """One rebalance: each member's subscription is what it wanted last."""
    told = {name: member.metadata(member._wanted) for name, member in members.items()}
    made = leader.assign(cluster, told)
    for name, member in members.items():
        member.on_assignment(made[name])
    return {name: {t: sorted(ps) for t, ps in one.assignment} for name, one in made.items()}


def wanting(*topics: str, seen: Mapping[str, int] | None = None, **folded: int) -> GroupAssignor:
    made = assignor(seen, **folded)
    made.metadata(topics)
    return made


def test_an_assignment_that_was_made_for_what_is_read_fits() -> None:
    one, two = wanting("a", "b"), wanting("a")
    found = assigned(one, Cluster(a=4, b=4), one=one, two=two)
    assert (one.misfit, two.misfit) == (None, None)
    assert sorted(found["one"]["a"] + found["two"]["a"]) == [0, 1, 2, 3]
    assert found["one"]["b"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("former", "present"),
    [
        (("a",), ("a", "b")), (("a", "b"), ("a",)), (("a",), ("b",)), (("a", "b"), ("b", "c")),
    ],
)
def test_a_former_assignment_does_not_fit_other_topics(
    former: tuple[str, ...], present: tuple[str, ...]
) -> None:
    cluster = Cluster(a=4, b=4, c=4)
    before, other = wanting(*former), wanting("a", "b", "c")
    told = {"one": before.metadata(former), "two": other.metadata(other._wanted)}
    kept = other.assign(cluster, told)["one"]
    # The broker gives it to the process that has come back, whatever that reads.
    again = wanting(*present)
    again.on_assignment(kept)
    assert again.misfit is not None
    first = again.metadata(present).user_data
    again.ask_anew()
    assert again.metadata(present).user_data != first  # else the broker makes no rebalance of it
    assigned(other, cluster, one=again, two=other)
    assert again.misfit is None


def test_a_leader_of_a_former_version_tells_less_and_is_understood() -> None:
    old, again = wanting("a"), wanting("a", "b")
    made = old.assign(Cluster(a=4), {"one": old.metadata({"a"})})["one"]
    told = orjson.loads(old._decompress(made.user_data))
    made.user_data = old._compress(
        orjson.dumps({name: told[name] for name in told.keys() - {SUBSCRIBED, COUNTS}})
    )
    again.on_assignment(made)
    assert again.misfit is not None
    assert "b" in again.misfit
    old.on_assignment(made)
    assert old.misfit is None


def test_a_member_of_a_former_version_may_be_in_the_group() -> None:
    empty = ClientMetadata(
        assignment=ClientAssignment(actives={}, standbys={}), url="http://nowhere",
        changelog_distribution={}, external_topic_distribution={}, topic_groups={},
    )
    old = ConsumerProtocolMemberMetadata(4, ["a"], empty.dumps())
    leader = wanting("a")
    made = leader.assign(Cluster(a=4), {"old": old, "new": leader.metadata({"a"})})
    # What is new in the answer is passed over there.
    read = ClientMetadata.loads(leader._decompress(made["old"].user_data))
    assert len(read.assignment.actives["a"]) == 2


def test_a_topic_that_the_leader_does_not_know_yet_counts() -> None:
    leader, maker = wanting("a"), wanting("a", "new", seen={"new": 8})
    found = assigned(leader, Cluster(a=4), one=leader, two=maker)
    assert found["two"]["new"] == list(range(8))
    assert maker.misfit is None


def test_a_topic_that_nobody_knows_leaves_its_reader_unfit() -> None:
    one = wanting("a", "missing")
    assigned(one, Cluster(a=4), one=one)
    assert one.misfit is not None
    assert "missing" in one.misfit


def test_partitions_that_come_later_are_noticed_once() -> None:
    one = wanting("a")
    assigned(one, Cluster(a=4), one=one)
    assert not one.compare({"a": 4})
    assert one.compare({"a": 6})
    assert one.misfit is not None
    assert "6 partitions" in one.misfit
    assert not one.compare({"a": 6})  # it is being asked for
    assigned(one, Cluster(a=6), one=one)
    assert one.misfit is None


@pytest.mark.parametrize("count", [5, 6, 9, 16])
@pytest.mark.parametrize("processes", [1, 2, 3, 4, 5])
def test_added_partitions_go_to_their_home(count: int, processes: int) -> None:
    members = {f"m{n}": wanting(*INPUTS, requested=4) for n in range(processes)}
    leader = members["m0"]
    before = Cluster(changelog=4, outcomes=4, requested=4)
    assigned(leader, before, **members)
    after = Cluster(changelog=4, outcomes=4, requested=count)
    for _ in range(2):  # again, from an assignment that has added partitions
        found = assigned(leader, after, **members)
        seen: list[int] = []
        for one in found.values():
            homes = one.get("changelog", [])
            assert one.get("outcomes", []) == homes
            requested = one.get("requested", [])
            assert {number % 4 for number in requested} == set(homes)
            seen += requested
        assert sorted(seen) == list(range(count))


async def test_a_topic_that_is_not_read_is_left_out_of_an_assignment() -> None:
    from aiokafka.structs import TopicPartition

    subscriptions = Subscriptions()
    subscriptions.subscribe({"a"})
    subscriptions.assign_from_subscribed({TopicPartition("a", 1), TopicPartition("old", 2)})
    assert subscriptions.assigned_partitions() == {TopicPartition("a", 1)}
