"""`tidemill new NAME`: what it writes passes its test and the type checker; nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tidy.sources import ROOT
from tidemill.agents import exit_codes
from tidemill.agents.settings import ENV_PREFIX, WorkerSettings
from tidemill.new_module import CannotWrite, write_new

SECONDS = 120.0


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=SECONDS,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT), "TIDEMILL_NATIVE": "0"},
    )


def test_the_command_says_what_it_wrote_and_what_comes_next(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "tidemill", "new", "my_jobs")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "my_jobs.py", "test_my_jobs.py", "my_jobs.env"
    }
    assert "tidemill dev my_jobs" in done.stdout
    again = run(tmp_path, "-m", "tidemill", "new", "my_jobs")
    assert again.returncode == exit_codes.USAGE
    assert "my_jobs.py is there already" in again.stderr


def test_its_test_runs(tmp_path: Path) -> None:
    write_new("my_jobs", tmp_path)
    done = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_jobs.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_its_settings_are_settings_and_say_what_holds_without_them(tmp_path: Path) -> None:
    write_new("my_jobs", tmp_path)
    lines = (tmp_path / "my_jobs.env").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    known = WorkerSettings.model_fields
    for name, text in given.items():
        field = known[name.removeprefix(ENV_PREFIX).lower()]
        assert text == str(field.default).removesuffix(".0"), name


@pytest.mark.parametrize("taken", ["my_jobs.py", "test_my_jobs.py", "my_jobs.env", "my_jobs"])
def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("mine")
    with pytest.raises(CannotWrite, match="is there already"):
        write_new("my_jobs", tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(taken, "mine")]


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("my-jobs", "my_jobs"), ("My Jobs", "my_jobs"), ("1st", "my_jobs"), ("", "my_jobs"),
        ("../evil", "evil"), ("class", "my_jobs"), ("jobs.py", "jobs_py"), ("größe", "gr_e"),
        ("x" * 65, "x" * 40), ("-", "my_jobs"),
    ],
)
def test_a_bad_name_is_told_with_a_better_one(tmp_path: Path, name: str, better: str) -> None:
    with pytest.raises(CannotWrite, match=f"for example {better}$"):
        write_new(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["json", "tidemill", "pytest"])
def test_a_name_of_another_module_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CannotWrite, match="belongs to a module"):
        write_new(name, tmp_path)
    assert list(tmp_path.iterdir()) == []
