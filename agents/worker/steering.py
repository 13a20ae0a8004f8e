"""What a handler's exception wants: steering words inside groups and behind other exceptions.

Owns the search for `NonRetryable`, `Retry` and `Skip`, and the words for causes. Refuses to know
what an end looks like.

`asyncio.TaskGroup` and its kin raise a group of what their tasks raised, and libraries raise their
own error from what they caught (`raise X from error`). What was raised first, or inside, still says
what the job needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tidemill.agents.worker.errors import NonRetryable, Retry, Skip, Steer
from tidemill.agents.worker.traces import class_name

EXCEPTIONS_MAX: Final = 1_000  # looked at; a group may hold any number
NAMED_MAX: Final = 5  # causes in a message; the trace has them all


def steering_word(raised: BaseException) -> Steer | None:
    """The word that decides; None when the attempt just failed.

    Raised by itself it stands for itself. In a group the sternest wins: `NonRetryable`, because no
    attempt can succeed; then `Retry` with the longest wait; a plain error is tried again; `Skip`
    only when nothing else was raised.
    """
    if isinstance(raised, Steer):
        return raised
    found = list(_leaves(raised))
    words = [_word_behind(each) for each in found]
    for each in words:
        if isinstance(each, NonRetryable):
            return each
    waits = [each for each in words if isinstance(each, Retry)]
    if waits:
        return max(waits, key=_wait_of)
    others = [each for each in words if each is not None]
    if others and len(others) == len(words):
        return next((each for each in others if not isinstance(each, Skip)), others[0])
    return None


def _wait_of(word: Retry) -> float:
    after = getattr(word, "after_seconds", None)  # a user's class may lack what its base has
    return after if isinstance(after, int | float) else -1.0


def _leaves(raised: BaseException) -> Iterator[BaseException]:
    """What a group holds, groups in groups and behind causes included; or the exception itself."""
    waiting, seen = [raised], 0
    while waiting and seen < EXCEPTIONS_MAX:
        seen += 1
        each = waiting.pop(0)
        inner = _group_behind(each)
        if inner is None:
            yield each
        else:
            waiting[:0] = inner.exceptions


def _chain(raised: BaseException) -> Iterator[BaseException]:
    """An exception and what it was explicitly raised from."""
    seen: set[int] = set()
    each: BaseException | None = raised
    while each is not None and id(each) not in seen and len(seen) < EXCEPTIONS_MAX:
        seen.add(id(each))
        yield each
        each = each.__cause__


def _group_behind(raised: BaseException) -> BaseExceptionGroup[BaseException] | None:
    for each in _chain(raised):
        if isinstance(each, Steer):
            return None
        if isinstance(each, BaseExceptionGroup):
            return each
    return None


def _word_behind(raised: BaseException) -> Steer | None:
    return next((each for each in _chain(raised) if isinstance(each, Steer)), None)


def causes_text(raised: BaseException, *, but: BaseException) -> str:
    """What `raised` holds or was raised from, in one line; "" when nothing. `but` is left out."""
    named: list[str] = []
    for leaf in _leaves(raised):
        for each in _chain(leaf):
            if each is not but and each is not raised and len(named) <= NAMED_MAX:
                named.append(name_and_text(each))
    if but is not raised and not isinstance(raised, BaseExceptionGroup):
        named.insert(0, name_and_text(raised))
    if len(named) > NAMED_MAX:
        named[NAMED_MAX:] = ["…"]
    return f"with {'; '.join(named)}" if named else ""


def name_and_text(raised: BaseException) -> str:
    """The class and the words of an exception, whatever its `__str__` does."""
    name = class_name(raised)
    try:
        text = str(raised)
    except BaseException as error:  # noqa: BLE001  # it may do anything; the name is left
        return f"{name} (its words cannot be read: {class_name(error)})"
    return f"{name}: {text}" if text else name
