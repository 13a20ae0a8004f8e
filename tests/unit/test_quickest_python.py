"""Which Python the benchmark runs on: the first one, unless another is clearly quicker."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools.quickest_python import main, quickest, seconds_of


def fake(folder: Path, name: str, says: str) -> str:
    """A Python of which the probe takes what it says."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{says}\n")
    path.chmod(0o755)
    return str(path)


def test_the_quicker_one_is_taken(tmp_path: Path) -> None:
    slow, quick = fake(tmp_path, "slow", "echo 0.02"), fake(tmp_path, "quick", "echo 0.01")
    assert quickest([slow, quick]) == quick
    assert quickest([quick, slow]) == quick


def test_the_first_one_stays_when_it_is_about_as_quick(tmp_path: Path) -> None:
    first, second = fake(tmp_path, "first", "echo 0.0100"), fake(tmp_path, "second", "echo 0.0098")
    assert quickest([first, second]) == first


@pytest.mark.parametrize("says", ["exit 1", "echo no Python.h >&2; exit 1"])
def test_one_that_cannot_compile_is_passed_over(tmp_path: Path, says: str) -> None:
    unusable, usable = fake(tmp_path, "unusable", says), fake(tmp_path, "usable", "echo 0.02")
    assert quickest([str(tmp_path / "missing"), unusable, usable]) == usable


def test_none_is_told_by_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["quickest_python.py", str(tmp_path / "missing")])
    assert main() == 1
    assert capsys.readouterr().out == ""


def test_the_probe_runs_on_this_python() -> None:
    seconds = seconds_of(sys.executable)
    assert seconds is None or 0 < seconds < 10  # None: no headers here
