"""Another package called `agents` is named, with the way out, instead of a riddle."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tidemill.agents import exit_codes
from tidemill.shadowing import OUR_PACKAGES, shadowed


def run_beside(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python in a place where `folder` comes before what is installed."""
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True, text=True, timeout=60, check=False,
    )


def test_nothing_is_shadowed_here() -> None:
    assert shadowed() == {}


@pytest.mark.parametrize("name", OUR_PACKAGES)
def test_the_command_names_the_package_in_the_way(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    done = run_beside(tmp_path, "-m", "tidemill", "--help")
    assert done.returncode == exit_codes.CONFIG
    assert f"{name!r} is found at {tmp_path / name}" in done.stderr
    assert "virtual environment of its own" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_import_names_the_package_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").touch()
    done = run_beside(tmp_path, "-c", "from tidemill import job")
    assert "ShadowedPackage" in done.stderr
    assert str(tmp_path / "agents") in done.stderr
