"""The demo: its data is real and dealt the same each time, its handler computes, and it runs."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tidemill import NonRetryable, Skip
from tidemill.demo import DemoError, _make_fresh, read_messages, requests_of
from tidemill.demo_profile import HISTORY_MESSAGES, ProfileRequest, profile


def test_the_dialogues_are_dealt_to_enough_users_and_always_the_same() -> None:
    messages = read_messages()
    assert messages == read_messages()
    assert len({message.user_id for message in messages}) >= 500
    assert len(messages) >= 5_000


def test_each_request_carries_the_writer_s_latest_messages() -> None:
    messages = read_messages()
    seen: Counter[str] = Counter()
    for message, request in zip(messages, requests_of(messages), strict=True):
        seen[message.user_id] += 1
        assert isinstance(request.payload, dict)
        told = request.payload["messages"]
        assert told[-1] == message.text
        assert len(told) == min(seen[message.user_id], HISTORY_MESSAGES)


def test_features_and_mood_are_computed() -> None:
    happy = profile(ProfileRequest(messages=["I love this, it is great!"], language="english"))
    sad = profile(
        ProfileRequest(messages=["What a horrible day.", "Why me?"], language="english")
    )
    assert happy["sentiment"] > 0.5 > 0 > sad["sentiment"]
    assert (sad["messages"], sad["words"], sad["question_rate"]) == (2, 6, 0.5)
    assert happy["exclamation_rate"] == 1.0
    repeated = profile(ProfileRequest(messages=["la la la la"], language="spanish"))
    assert (repeated["lexical_diversity"], repeated["sentiment"]) == (0.25, None)


def test_bad_lines_of_the_data_set_end_as_they_should() -> None:
    with pytest.raises(NonRetryable):
        profile(ProfileRequest(messages=["1963"], language="english"))
    with pytest.raises(Skip):
        profile(ProfileRequest(messages=["hello", " "], language="english"))


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    with pytest.raises(DemoError, match="move it away"):
        _make_fresh(tmp_path)
    assert precious.read_text() == "mine"


@pytest.mark.timeout(240)
def test_the_demo_runs_to_its_report(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tidemill.demo"], cwd=tmp_path, capture_output=True, text=True,
        timeout=200, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for part in (
        "our assignment", "Jobs by status", "Throughput per second",
        "Error rate by type and code", "Wait and run times", "rate_limited", "NO_WORDS",
        "p50_ms", "p95_ms", "p99_ms", "each ended exactly once",
    ):
        assert part in " ".join(done.stdout.split()), part
