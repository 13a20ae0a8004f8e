"""Data folders are their owner's alone, whatever was there before; others keep their mode."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidemill.agents.private_files import (
    folder_fault,
    make_data_folder,
    make_private,
    private_umask,
)


@pytest.fixture(params=[0o000, 0o002, 0o022, 0o077], ids=oct, autouse=True)
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_is_its_owners(tmp_path: Path) -> None:
    assert make_data_folder(tmp_path / "a" / "data") == []
    assert mode(tmp_path / "a" / "data") == 0o700


def test_an_older_folder_is_mended_down_to_its_files(tmp_path: Path) -> None:
    inner = tmp_path / "data" / "kafka" / "logs"
    inner.mkdir(parents=True)
    for path in (inner, inner.parent, tmp_path / "data"):
        path.chmod(0o775)
    (inner / "broker.log").write_text("x")
    (inner / "broker.log").chmod(0o664)
    (tmp_path / "stranger").write_text("x")
    (tmp_path / "stranger").chmod(0o644)
    (inner / "link").symlink_to(tmp_path / "stranger")
    make_data_folder(tmp_path / "data")
    assert {mode(tmp_path / "data"), mode(inner), mode(inner.parent)} == {0o700}
    assert mode(inner / "broker.log") == 0o600
    assert mode(tmp_path / "stranger") == 0o644


def test_a_project_that_is_named_as_the_folder_keeps_its_modes(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("x")
    (tmp_path / "run.sh").chmod(0o755)
    tmp_path.chmod(0o755)
    make_data_folder(tmp_path)
    assert (mode(tmp_path), mode(tmp_path / "run.sh")) == (0o755, 0o755)
    # What is then made in it is mended all the same.
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs").chmod(0o755)
    make_private(tmp_path, marks=("none",), ours=("logs",))
    assert mode(tmp_path / "logs") == 0o700


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real").chmod(0o755)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    make_data_folder(tmp_path / "link")
    assert mode(tmp_path / "real") == 0o700


def test_files_that_are_made_meanwhile_are_private(tmp_path: Path) -> None:
    with private_umask():
        (tmp_path / "a").write_text("x")
    assert mode(tmp_path / "a") == 0o600


NAMES = ["a b", "R&D", "M\u00fcller", "\U0001f600", "-x", "a\nb", "%20#?\\"]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_will_do(tmp_path: Path, name: str) -> None:
    assert folder_fault(tmp_path / name) is None


@pytest.mark.parametrize("name", ["bad\udcff", "x/" * 1_800, "x" * 300, "\u00fc" * 200])
def test_names_that_cannot_be_used_are_refused(tmp_path: Path, name: str) -> None:
    assert folder_fault(tmp_path / name) is not None


def test_a_loop_of_links_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert folder_fault(tmp_path / "a" / "data") is not None


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert folder_fault(tmp_path / "file") == "it is no folder"
