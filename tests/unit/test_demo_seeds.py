"""The demo's jobs are asked for once a folder, and each time with the same bodies."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pytest

from tidemill import ClientError, Request
from tidemill import client as client_
from tidemill.demo_jobs import seeds
from tidemill.demo_seeds import NOTE, seed
from tidemill.requests import encode

AT = datetime(2026, 5, 1, tzinfo=UTC)


class Kafka:
    """In place of a client: notes what was asked for."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.cancelled: list[tuple[str, str]] = []
        self.is_down = False

    def __call__(self, *_: Any, **__: Any) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def enqueue_many(self, requests: Iterable[Request]) -> list[str]:
        bodies = [encode(each, each.job_id or "") for each in requests]
        self.asked += bodies
        if self.is_down:
            raise ClientError("no broker")
        return [str(json.loads(body)["job_id"]) for body in bodies]

    def cancel(self, user_id: str, job_id: str, **_: Any) -> None:
        self.cancelled.append((user_id, job_id))


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    found = Kafka()
    monkeypatch.setattr(client_, "Client", found)
    return found


def test_the_same_instant_gives_the_same_requests_and_each_id_is_one() -> None:
    first = [encode(each, str(each.job_id)) for each in seeds(AT)]
    assert first == [encode(each, str(each.job_id)) for each in seeds(AT)]
    ids = [each.job_id for each in seeds(AT)]
    assert None not in ids
    assert len(set(ids)) == len(ids)


def test_a_second_start_asks_for_nothing(kafka: Kafka, tmp_path: Path) -> None:
    told = seed("k", "", tmp_path)
    count = len(list(seeds(AT)))
    assert f"{count} jobs" in told
    assert len(kafka.asked) == count
    assert {(each.user_id, each.job_id) for each in seeds(AT)}.issuperset(kafka.cancelled)
    assert len(kafka.cancelled) == 1
    assert "none is asked for twice" in seed("k", "", tmp_path)
    assert (len(kafka.asked), len(kafka.cancelled)) == (count, 1)
    assert (tmp_path / NOTE).stat().st_mode & 0o077 == 0


def test_one_that_was_cut_off_asks_again_with_the_same_bodies(
    kafka: Kafka, tmp_path: Path
) -> None:
    kafka.is_down = True
    with pytest.raises(ClientError):
        seed("k", "", tmp_path)
    kafka.is_down = False
    seed("k", "", tmp_path)
    half = len(kafka.asked) // 2
    assert kafka.asked[:half] == kafka.asked[half:]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"at": 1}', '{"at": "x", "is_done": true}'])
def test_a_note_that_cannot_be_read_is_written_anew(
    kafka: Kafka, tmp_path: Path, text: str
) -> None:
    (tmp_path / NOTE).write_text(text)
    seed("k", "", tmp_path)
    assert kafka.asked
    assert json.loads((tmp_path / NOTE).read_text())["is_done"] is True


def test_other_topics_have_jobs_of_their_own(kafka: Kafka, tmp_path: Path) -> None:
    seed("k", "", tmp_path)
    before = len(kafka.asked)
    seed("k", "other.", tmp_path)
    assert len(kafka.asked) == 2 * before
