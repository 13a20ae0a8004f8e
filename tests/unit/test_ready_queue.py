"""The order among jobs that wait: priorities, turns of users, ageing."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from tidemill.streams.dispatch.ready_queue import TURNS, ReadyQueue
from tidemill.streams.job import JobKey


def popped(line: ReadyQueue, count: int = 10**6) -> list[JobKey]:
    found: list[JobKey] = []
    while len(found) < count and (key := line.pop()) is not None:
        found.append(key)
    return found


def test_one_user_is_served_in_the_order_of_arrival() -> None:
    line = ReadyQueue()
    keys = [("u", str(n)) for n in range(50)]
    for key in keys:
        line.push(key, "medium")
    assert list(line) == keys
    assert popped(line) == keys
    assert line.pop() is None
    assert len(line) == 0


def test_users_take_turns_however_much_one_of_them_asks() -> None:
    line = ReadyQueue()
    for n in range(1_000):
        line.push(("greedy", str(n)), "medium")
    for n in range(5):
        line.push(("modest", str(n)), "medium")
    assert Counter(user for user, _ in popped(line, 10)) == {"greedy": 5, "modest": 5}


def test_a_user_who_comes_back_joins_at_the_end() -> None:
    line = ReadyQueue()
    for user in "abc":
        line.push((user, "1"), "medium")
    assert line.pop() == ("a", "1")
    line.push(("a", "2"), "medium")
    assert [user for user, _ in popped(line)] == ["b", "c", "a"]


def test_what_was_given_back_goes_first_in_its_user_s_line() -> None:
    line = ReadyQueue()
    line.push(("u", "2"), "low")
    line.push(("u", "1"), "low", number=1)
    assert popped(line) == [("u", "1"), ("u", "2")]


def test_shares_of_priorities_and_no_starving() -> None:
    line = ReadyQueue()
    for n in range(2_000):
        for priority in ("high", "medium", "low"):
            line.push((priority, str(n)), priority)
    served = Counter(user for user, _ in popped(line, len(TURNS) * 50))
    assert served == {"high": 16 * 50, "medium": 4 * 50, "low": 50}
    assert len(TURNS) == 21


def test_a_lone_priority_gets_every_turn() -> None:
    line = ReadyQueue()
    for n in range(100):
        line.push(("u", str(n)), "low")
    assert all(int(a[1]) < int(b[1]) for a, b in pairwise(popped(line)))
