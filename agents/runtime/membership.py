"""Who of a group reads which partitions, and whether what this process was given still fits it.

Owns the assignor of every role, which is Faust's with three additions, and when another assignment
is asked for. Refuses to know what is read.

1. *Fit.* A static member that comes back gets its former assignment without any rebalance, made for
   the topics that it read then. So the leader writes beside each assignment for which topics and
   partition counts it was made; a member compares that with what it wants now, and asks for another
   rebalance when the two differ. What takes over unchanged stays as quick as it was.
2. *Counts.* Members tell the partition counts that they see, and the largest one counts: a topic
   that was made a moment ago is known to its maker before it is known to the leader.
3. *Folding.* Partition p of a folded topic goes to whoever has partition p mod N of the others:
   what is in a partition that somebody added has a reader, and its state has one home.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)
from aiokafka.structs import TopicPartition
from faust.assignor import PartitionAssignor

logger = logging.getLogger("tidemill.runtime")

# Fields of ours in Faust's JSON; Faust passes over what it does not know, so members of other
# versions may be in the same group.
SUBSCRIBED: Final = "tidemill_subscribed"
COUNTS: Final = "tidemill_counts"
TURN: Final = "tidemill_turn"

# Until an assignment that does not fit is asked to be made anew: at once, then as long as it may
# take for a topic to be there or for a leader to hear of it.
REJOIN_SECONDS: Final = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
NOT_ASSIGNED: Final = "the group has not assigned anything yet"


class Subscriptions(SubscriptionState):  # type: ignore[misc]  # untyped base
    """Leaves topics out that are not read here any more, where aiokafka would end its membership.

    The former assignment of a static member may name them; another one is asked for.
    """

    def assign_from_subscribed(self, assignment: Iterable[TopicPartition]) -> None:
        super().assign_from_subscribed({tp for tp in assignment if tp.topic in self.topics})


class _Counts:
    """What the assignor asks of a cluster, as counts."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = counts

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(range(self._counts.get(topic, 0)))


class GroupAssignor(PartitionAssignor):
    """Faust's assignor with fit, counts and folding."""

    app: Any  # the RoleApp; naming its type here would close a circle of imports

    def __init__(self, app: Any, replicas: int = 0) -> None:
        super().__init__(app, replicas)
        #: Why the present assignment is not what this process needs; None when it fits.
        self.misfit: str | None = NOT_ASSIGNED
        self._wanted: frozenset[str] = frozenset()
        self._turn = 0
        self._told: dict[str, int] = {}  # counts for which the present assignment was made
        self._counts: dict[str, int] = {}  # as the leader: real ones
        self._subscriptions: dict[str, list[str]] = {}

    # -- as a member ---------------------------------------------------------------------------

    def ask_anew(self) -> None:
        """The next join must lead to a rebalance: a broker answers a follower that tells nothing
        new with the assignment that stands."""
        self._turn += 1

    def metadata(self, topics: Iterable[str]) -> Any:
        self._wanted = frozenset(topics)
        made = super().metadata(set(topics))
        more = {COUNTS: self.app.seen_counts(self._wanted), TURN: self._turn}
        user_data = orjson.dumps({**orjson.loads(made.user_data), **more})
        return ConsumerProtocolMemberMetadata(self.version, sorted(topics), user_data)

    def on_assignment(self, assignment: Any) -> None:
        super().on_assignment(assignment)
        told = orjson.loads(self._decompress(assignment.user_data))
        # A leader of a former version tells only which topics it knew.
        known = told.get("topic_groups") or {}
        made_for = told.get(SUBSCRIBED)
        self._told = told.get(COUNTS) or {}
        strange = sorted({topic for topic, _ in assignment.assignment} - self._wanted)
        missing = sorted(self._wanted - known.keys())
        if strange:
            self.misfit = f"it has {strange[0]}, which is not read here any more"
        elif missing:
            self.misfit = f"it was made without {missing[0]}"
        elif made_for is not None and set(made_for) != self._wanted:
            self.misfit = "it was made for other topics"
        else:
            self.misfit = None
            self.compare(self.app.seen_counts(self._wanted))

    def compare(self, seen: Mapping[str, int]) -> bool:
        """Whether an assignment that did fit does not any more: a topic has grown."""
        for topic, count in seen.items():
            known = self._told.get(topic)
            if known and count > known and self.misfit is None:
                self.misfit = f"{topic} has {count} partitions by now, it was made for {known}"
                return True
        return False

    # -- as the leader -------------------------------------------------------------------------

    def _perform_assignment(self, cluster: Any, member_metadata: Any) -> Any:
        self._subscriptions = {
            member: sorted(metadata.subscription) for member, metadata in member_metadata.items()
        }
        counts: dict[str, int] = {}
        for topic in {topic for topics in self._subscriptions.values() for topic in topics}:
            counts[topic] = len(cluster.partitions_for_topic(topic) or ())
        for metadata in member_metadata.values():
            for topic, count in (orjson.loads(metadata.user_data).get(COUNTS) or {}).items():
                counts[topic] = max(count, counts.get(topic, 0))
        self._counts = counts
        return super()._perform_assignment(_Counts(self._folded()), member_metadata)

    def _folded(self) -> dict[str, int]:
        """The counts as the assignor shall see them."""
        folds: Mapping[str, int] = self.app.folded_topics
        return {topic: min(count, folds.get(topic, count)) for topic, count in self._counts.items()}

    def _get_client_metadata(self, metadata: Any) -> Any:  # type: ignore[override]  # needs counts
        """A member's last assignment, without the partitions that are folded or gone."""
        found = super()._get_client_metadata(metadata)
        counts = self._folded()
        actives = found.assignment.actives
        for topic, numbers in actives.items():
            actives[topic] = [number for number in numbers if number < counts.get(topic, 0)]
        return found

    def _protocol_assignments(
        self, assignments: Any, cl_distribution: Any, tp_distribution: Any, topic_groups: Any
    ) -> Any:
        for topic, partitions in self.app.folded_topics.items():
            added = range(partitions, self._counts.get(topic, 0))
            for assignment in assignments.values():
                mine = assignment.actives.get(topic)
                if mine:
                    mine += [number for number in added if number % partitions in mine]
        made = super()._protocol_assignments(
            assignments, cl_distribution, tp_distribution, topic_groups
        )
        return {member: self._signed(member, one) for member, one in made.items()}

    def _signed(self, member: str, made: Any) -> Any:
        """An assignment that says for what it was made."""
        told = orjson.loads(self._decompress(made.user_data))
        told[SUBSCRIBED] = self._subscriptions[member]
        told[COUNTS] = self._counts
        return ConsumerProtocolMemberAssignment(
            made.version, made.assignment, self._compress(orjson.dumps(told))
        )


class FitKeeper:
    """Asks the group for another assignment while the present one does not fit."""

    def __init__(self, app: Any, kafka: Any) -> None:
        self._app = app
        self._kafka = kafka
        self._misfits = 0  # assignments in a row that did not fit
        self._asking: asyncio.TimerHandle | None = None
        kafka._client.cluster.add_listener(self._on_metadata)

    def stop(self) -> None:
        self._kafka._client.cluster.remove_listener(self._on_metadata)
        if self._asking is not None:
            self._asking.cancel()

    def look(self) -> None:
        """There is a new assignment, or news about partitions."""
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        misfit = self._app.misfit
        if misfit is None:
            self._misfits = 0
            return
        pause = REJOIN_SECONDS[min(self._misfits, len(REJOIN_SECONDS) - 1)]
        self._misfits += 1
        log = logger.info if self._misfits == 1 else logger.warning
        log("the group's assignment does not fit (%s): asking for another one", misfit)
        if pause:
            self._asking = asyncio.get_running_loop().call_later(pause, self._ask)
        else:
            self._ask()

    def _ask(self) -> None:
        self._asking = None
        self._app.assignor.ask_anew()
        self._kafka._coordinator.request_rejoin()

    def _on_metadata(self, _cluster: Any) -> None:
        """Kafka has told which topics and partitions there are."""
        seen = self._app.seen_counts(self._kafka._subscription.topics)
        if self._app.on_counts is not None:
            self._app.on_counts(seen)
        if self._app.assignor.compare(seen):
            self.look()
