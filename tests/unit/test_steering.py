"""Steering words inside groups and behind other exceptions, and causes that are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from tidemill.agents.worker import outcomes
from tidemill.agents.worker.errors import NonRetryable, Retry, Skip
from tidemill.agents.worker.steering import EXCEPTIONS_MAX, steering_word

JOB = {"user_id": "u", "job_id": "j", "run": 1, "attempt": 1, "epoch": 1, "type": "t"}

GIVE_UP = NonRetryable("no such card", code="CARD")
LATER = Retry("busy", after_seconds=7, code="BUSY")
SOON = Retry("busy", after_seconds=1)
SKIP = Skip("nothing new")
BAD = ValueError("bad")


def group(*inside: BaseException, words: str = "in a group") -> BaseExceptionGroup[BaseException]:
    return BaseExceptionGroup(words, list(inside))


def from_cause(raised: BaseException, cause: BaseException) -> BaseException:
    raised.__cause__ = cause
    return raised


async def raise_it(raised: BaseException) -> None:
    raise raised


def by_task_group(*inside: BaseException) -> BaseException:
    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            for each in inside:
                tasks.create_task(raise_it(each))

    with pytest.raises(BaseExceptionGroup) as raised:
        asyncio.run(run())
    return raised.value


def encoded(raised: BaseException) -> dict[str, Any]:
    outcome: dict[str, Any] = orjson.loads(outcomes.encode(JOB, outcomes.error(raised, JOB), 1, 2))
    return outcome


WORDS: list[tuple[Callable[[], BaseException], Any]] = [
    (lambda: GIVE_UP, GIVE_UP), (lambda: group(GIVE_UP), GIVE_UP),
    (lambda: group(group(BAD, group(GIVE_UP))), GIVE_UP), (lambda: group(BAD, GIVE_UP), GIVE_UP),
    (lambda: group(LATER, GIVE_UP, SKIP), GIVE_UP), (lambda: group(SKIP, LATER), LATER),
    (lambda: group(SOON, LATER), LATER), (lambda: group(LATER, Retry("no hurry")), LATER),
    (lambda: group(BAD, LATER), LATER), (lambda: group(SKIP), SKIP),
    (lambda: group(SKIP, group(SKIP)), SKIP), (lambda: group(SKIP, BAD), None),
    (lambda: group(BAD), None), (lambda: BAD, None), (lambda: group(SystemExit(3), BAD), None),
    (lambda: group(KeyboardInterrupt(), GIVE_UP), GIVE_UP),
    (lambda: from_cause(RuntimeError("wrapped"), GIVE_UP), GIVE_UP),
    (lambda: from_cause(RuntimeError("a"), from_cause(KeyError("b"), LATER)), LATER),
    (lambda: from_cause(RuntimeError("wrapped"), group(GIVE_UP, BAD)), GIVE_UP),
    (lambda: group(from_cause(RuntimeError("wrapped"), SKIP)), SKIP),
    (lambda: from_cause(RuntimeError("wrapped"), group(group(LATER))), LATER),
    # What is raised in place of a word, on purpose, counts.
    (lambda: from_cause(Retry("after all", after_seconds=2, code="OWN"), GIVE_UP), "OWN"),
    (lambda: from_cause(NonRetryable("give up", code="END"), group(LATER)), "END"),
]


@pytest.mark.parametrize(("make", "expected"), WORDS)
def test_the_word_that_decides(make: Callable[[], BaseException], expected: Any) -> None:
    found = steering_word(make())
    if isinstance(expected, str):
        assert getattr(found, "code", None) == expected
    else:
        assert found is expected


def test_an_exception_while_another_is_handled_is_its_own() -> None:
    """Without `from` it happened by chance: nobody said that it stands for the other."""
    own = ValueError("own")
    own.__context__ = NonRetryable("inner")
    assert steering_word(own) is None


@pytest.mark.parametrize("make", [by_task_group, group], ids=["TaskGroup", "by hand"])
def test_a_word_in_a_group_ends_as_by_itself(make: Callable[..., BaseException]) -> None:
    gave_up = encoded(make(NonRetryable("no such card", code="CARD"), ValueError("bad")))
    assert (gave_up["error"]["code"], gave_up["error"]["retryable"]) == ("CARD", False)
    assert gave_up["error"]["message"].startswith("no such card")
    later = encoded(make(Retry("busy", after_seconds=7)))
    assert (later["error"]["retryable"], later["retry_after_ms"]) == (True, 7_000)
    assert encoded(make(Skip("nothing new")))["reason"] == "nothing new"


def test_causes_are_in_the_message() -> None:
    message = encoded(by_task_group(ValueError("bad"), KeyError("k")))["error"]["message"]
    assert "TaskGroup" in message
    assert "ValueError: bad" in message
    assert "KeyError: 'k'" in message
    wrapped = from_cause(RuntimeError("cannot save"), OSError("disk full"))
    message = encoded(wrapped)["error"]["message"]
    assert message == "RuntimeError: cannot save (with OSError: disk full)"
    word = from_cause(NonRetryable("no such card"), KeyError("card"))
    assert encoded(word)["error"]["message"] == "no such card (with KeyError: 'card')"
    both = encoded(group(GIVE_UP, ValueError("bad")))["error"]["message"]
    assert both == "no such card (with ValueError: bad)"


def test_any_number_and_any_depth_are_bounded() -> None:
    many = group(*(ValueError(number) for number in range(50)))
    assert len(encoded(many)["error"]["message"]) <= outcomes.MESSAGE_LENGTH_MAX
    deep: BaseException = ValueError("deep")
    for _ in range(5 * EXCEPTIONS_MAX):
        deep = group(deep)
    assert encoded(deep)["error"]["code"] == "HANDLER_ERROR"
    circle = ValueError("a")
    circle.__cause__ = from_cause(KeyError("b"), circle)
    assert encoded(circle)["kind"] == "failed"


class Broken(NonRetryable):
    def __init__(self) -> None:
        """Forgets its base."""


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_broken_words_are_failures_of_their_kind() -> None:
    broken = encoded(group(Broken()))["error"]
    assert (broken["code"], broken["retryable"]) == ("HANDLER_ERROR", False)
    assert "Mute" in encoded(group(Mute()))["error"]["message"]
