"""Libraries in versions that Tidemill does not run on are named before anything imports them."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tidemill import installed
from tidemill.agents import exit_codes
from tidemill.installed import ROLE_EXTRAS, WrongVersion, check_installed, fits

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("found", "bounds", "is_fit"),
    [
        ("0.14.0", "==0.14.0", True), ("0.14", "==0.14.0", True), ("0.14.1", "==0.14.0", False),
        ("2.9.9", ">=2.11", False), ("2.11", ">=2.11", True), ("3.0.0rc1", ">=2.11", True),
        ("1.10.13", ">=2.11", False), ("8.4", "<8.4", False), ("8.3.9", "<8.4", True),
        ("2.0", "<2,>=1.3", False), ("1.3", "<2, >=1.3", True), ("1.2.9", "<2,>=1.3", False),
        ("0.14.0+local.1", "==0.14.0", True), ("1!2.0", ">=1", True), ("odd", ">=1", True),
        ("1.0", "", True), ("1.0", "~=1.0", True), ("2.16.0.post1", ">=2.16", True),
    ],
)
def test_bounds(found: str, bounds: str, is_fit: bool) -> None:
    assert fits(found, bounds) is is_fit


@pytest.mark.parametrize("extra", sorted({*ROLE_EXTRAS.values(), "all"}))
def test_what_the_tests_run_on_fits(extra: str) -> None:
    check_installed(extra)


def test_extras_include_those_that_they_name() -> None:
    names = {name for name, _ in installed._needed({"dev-stack"})}
    assert {"aiokafka", "faust-streaming", "chdb", "fastapi", "confluent-kafka"} <= names
    assert "pyyaml" not in {name.lower() for name in names}
    assert "chdb" not in {name for name, _ in installed._needed({"worker"})}


WRONG = [
    ("aiokafka", "0.12.0", "worker", "aiokafka==0.14.0"),
    ("pydantic", "1.10.24", "api", "pydantic>=2.11"),
    ("confluent-kafka", "1.9.2", "sink", "confluent-kafka>=2.16"),
    ("chdb", "3.0.0", "dev-stack", "chdb==4.4.0"),
]


@pytest.mark.parametrize(("name", "version", "extra", "needed"), WRONG)
def test_a_wrong_version_is_named_with_what_to_install(
    name: str, version: str, extra: str, needed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda asked: version if asked == name else real(asked)
    )
    with pytest.raises(WrongVersion, match=f"{name} {version}.*pip install '{needed}'"):
        check_installed(extra)


@pytest.mark.parametrize("role", ["worker", "ledger", "sink", "api", "dev"])
def test_a_role_ends_by_it_before_anything_starts(role: str, tmp_path: Path) -> None:
    # What pip leaves of a version that was installed over another one.
    (tmp_path / "pydantic-1.10.24.dist-info").mkdir()
    (tmp_path / "pydantic-1.10.24.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: pydantic\nVersion: 1.10.24\n"
    )
    found = subprocess.run(
        [sys.executable, "-m", "tidemill", role], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}, check=False,
    )
    assert found.returncode == exit_codes.CONFIG
    assert found.stderr.splitlines() == [
        "error: this version of Tidemill does not run on pydantic 1.10.24; install what it needs "
        "with: pip install 'pydantic>=2.11'"
    ]
