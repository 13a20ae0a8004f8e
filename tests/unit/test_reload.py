"""Files that are watched, and lines that are kept back at a start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidemill.agents.dev_lines import QuietStart, tell_handlers
from tidemill.agents.reload import POLL_SECONDS, SETTLE_SECONDS, FileWatch


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def later(watch: FileWatch, clock: Clock) -> list[str]:
    """What has changed after everything has settled."""
    watch.changed()
    clock.now += POLL_SECONDS + SETTLE_SECONDS
    first = watch.changed()
    clock.now += POLL_SECONDS + SETTLE_SECONDS
    return first or watch.changed()


def saved(path: Path) -> None:
    path.write_text("2")


def saved_with_its_old_time(path: Path) -> None:
    before = path.stat()
    path.write_text("another length")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path) -> None:
    other = path.with_suffix(".tmp")
    other.write_text("1")
    other.rename(path)


def touched(path: Path) -> None:
    os.utime(path, ns=(5, 5))


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("edit", [saved, saved_with_its_old_time, replaced, touched, removed])
def test_each_way_to_save_a_file_is_seen_once(tmp_path: Path, clock: Clock, edit: object) -> None:
    file, other = tmp_path / "a.py", tmp_path / "b.py"
    file.write_text("1")
    other.write_text("1")
    watch = FileWatch(clock)
    watch.add([str(file), str(other)], since_ns=2**62)
    assert later(watch, clock) == []
    assert callable(edit)
    edit(file)
    assert later(watch, clock) == [str(file)]
    assert later(watch, clock) == []


def test_a_change_during_the_load_is_seen(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "a.py"
    file.write_text("1")
    watch = FileWatch(clock)
    watch.add([str(file)], since_ns=file.stat().st_mtime_ns - 1)
    assert later(watch, clock) == [str(file)]


def test_nothing_is_told_while_changes_still_come(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "a.py"
    file.write_text("1")
    watch = FileWatch(clock)
    watch.add([str(file)], since_ns=2**62)
    for n in range(5):
        clock.now += POLL_SECONDS
        file.write_text("1" * (n + 2))
        assert watch.changed() == []
    assert later(watch, clock) == [str(file)]


CONSOLE = "2026-01-01T00:00:00Z [{level:<9}] words of it [{logger}] role=ledger"
JSON = '{{"event": "words", "level": "{level}", "logger": "{logger}", "role": "ledger"}}'


@pytest.mark.parametrize("form", [CONSOLE, JSON])
@pytest.mark.parametrize(
    ("level", "logger", "is_shown"),
    [("info", "tidemill.ledger", False), ("warning", "tidemill.runtime.kafka.x-1", False),
     ("error", "aiokafka.consumer.group_coordinator", False), ("info", "uvicorn.error", False),
     ("error", "tidemill.runtime", True), ("warning", "tidemill.worker", True),
     ("info", "tidemill.job", True), ("info", "my.own", True)],
)
def test_lines_of_a_start_are_kept_back_until_something_is_wrong(
    form: str, level: str, logger: str, is_shown: bool
) -> None:
    shown: list[tuple[str, str]] = []
    lines = QuietStart(lambda name, line: shown.append((name, line)))
    line = form.format(level=level, logger=logger)
    lines("ledger", line)
    assert shown == ([("ledger", line)] if is_shown else [])
    lines.tell_kept("ledger")
    assert shown == [("ledger", line)]
    lines.is_starting = False
    lines("ledger", line)
    assert len(shown) == 2


@pytest.mark.parametrize("count", [1, 3, 4, 40])
def test_handlers_are_listed_in_few_lines_and_then_in_full(count: int) -> None:
    handlers = [
        {"type": f"t{n}", "queue": "q", "kind": "async", "max_attempts": 3,
         "timeout_seconds": 300.0, "limits": ["1 per 60 s, over: skip"]}
        for n in range(count)
    ]
    said: list[str] = []
    tell_handlers(handlers, said.append, is_ready=False)
    assert len(said) <= 3
    assert all(f"t{n}" in "\n".join(said) for n in range(count))
    tell_handlers(handlers, said.append, is_ready=True)
    for word in ("queue q", "async", "3 attempts", "300 s", "1 per 60 s"):
        assert "\n".join(said).count(word) == count
