"""What a probe of the API learns of Kafka: the last look, never an old one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tidemill.agents.api.kafka_watch import FRESH_SECONDS, KafkaWatch, look


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def topic(*leaders: int, error: object = None) -> Any:
    partitions = {n: SimpleNamespace(leader=leader) for n, leader in enumerate(leaders)}
    return SimpleNamespace(error=error, partitions=partitions)


def admin(**topics: Any) -> Any:
    return SimpleNamespace(list_topics=lambda timeout: SimpleNamespace(topics=topics))


def test_nothing_is_ready_before_the_first_look() -> None:
    assert KafkaWatch("h:1", "").problem() is not None


def test_a_look_counts_while_it_is_fresh() -> None:
    clock = Clock()
    watch = KafkaWatch("h:1", "", clock)
    watch.note(None)
    assert watch.problem() is None
    clock.now += FRESH_SECONDS
    assert watch.problem() is None
    clock.now += 0.1
    assert watch.problem() == "has not answered of late"
    watch.note("does not answer")
    assert watch.problem() == "does not answer"
    watch.note(None)
    assert watch.problem() is None


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"a": topic(1, 2), "b": topic(0)}, None),
        ({"a": topic(1)}, "has no topic b"),
        ({"a": topic(1), "b": topic()}, "has no topic b"),
        ({"a": topic(1), "b": topic(1, error="unknown")}, "has no topic b"),
        ({"a": topic(1), "b": topic(1, -1)}, "has no leader for a partition of b"),
    ],
)
def test_each_topic_that_is_needed_must_have_leaders(found: Any, expected: str | None) -> None:
    assert look(admin(**found), ("a", "b")) == expected
