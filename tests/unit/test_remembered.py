"""What a client remembers of ends: which one is found, and what it forgets."""

from __future__ import annotations

import orjson

from tidemill.remembered import OTHER_LIFE_MS, Remembered

NOW = 1_760_000_000_000


def end(job_id: str, run: int = 1) -> bytes:
    return orjson.dumps({"job_id": job_id, "run": run, "result": f"{job_id} {run}"})


def test_the_end_of_a_job_is_found_by_user_id_and_run() -> None:
    ends = Remembered()
    for run in (1, 2):
        ends.add(0, NOW, "u", end("j", run))
    ends.add(0, NOW, "other", end("k"))
    assert ends.find("u", "j", 1, NOW) == end("j", 1)
    assert ends.find("u", "j", 2, NOW) == end("j", 2)
    assert ends.find("u", "j", 3, NOW) is None
    assert ends.find("u", "k", 1, NOW) is None
    ends.add(0, NOW, "u", end("j", 3))
    assert ends.find("u", "j", 3, NOW) == end("j", 3)


def test_the_end_of_an_earlier_life_of_an_id_is_not_meant() -> None:
    ends = Remembered()
    ends.add(0, NOW, "u", end("j"))
    assert ends.find("u", "j", 1, NOW + OTHER_LIFE_MS) is not None
    assert ends.find("u", "j", 1, NOW + OTHER_LIFE_MS + 1) is None


def test_the_oldest_are_forgotten_whether_they_were_looked_at_or_not() -> None:
    ends = Remembered(records_max=4)
    for number in range(4):
        assert ends.add(number, NOW + number, "u", end(str(number))) == []
    assert ends.find("u", "1", 1, NOW) == end("1")
    assert ends.add(0, NOW, "u", end("4")) == [(0, NOW)]
    assert ends.add(0, NOW, "v", end("5")) == [(1, NOW + 1)]
    assert [number for number in range(5) if ends.find("u", str(number), 1, NOW)] == [2, 3, 4]
    assert ends.find("v", "5", 1, NOW) == end("5")


def test_bytes_are_bounded() -> None:
    ends = Remembered(bytes_max=10 * len(end("00")))
    for number in range(10, 60):
        ends.add(0, NOW, "u", end(str(number)))
    assert len(ends) == 10
    assert ends.find("u", "49", 1, NOW) is None
    assert ends.find("u", "50", 1, NOW) == end("50")


def test_a_partition_is_forgotten_and_the_others_are_not() -> None:
    ends = Remembered()
    ends.add(0, NOW, "u", end("a"))
    ends.add(1, NOW, "u", end("b"))
    assert ends.find("u", "a", 1, NOW) is not None
    ends.forget_partition(0)
    assert ends.find("u", "a", 1, NOW) is None
    assert ends.find("u", "b", 1, NOW) is not None
    ends.clear()
    assert (ends.find("u", "b", 1, NOW), len(ends)) == (None, 0)
