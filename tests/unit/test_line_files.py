"""Log files of roles: a disk that takes nothing ends nobody, and is told."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tidemill.agents import line_files
from tidemill.agents.line_files import LineFile


def test_lines_are_appended_for_their_owner_alone_and_rotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_files, "LOG_BYTES_MAX", 40)
    path, told = tmp_path / "logs" / "worker.log", list[str]()
    file = LineFile(path, told.append)
    for number in range(8):
        file.write(f"line {number} \udcff")
    file.close()
    file.write("after close")
    file.close()
    both = (path.with_name("worker.log.1").read_text() + path.read_text()).splitlines()
    assert both[-3:] == ["line 6 \\udcff", "line 7 \\udcff", "after close"]
    assert path.stat().st_size <= 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert told == []


@pytest.mark.parametrize("kind", ["full", "folder", "gone"])
def test_a_file_that_takes_nothing_is_told_once(kind: str, tmp_path: Path) -> None:
    path, told = tmp_path / "ledger.log", list[str]()
    if kind == "full":
        os.symlink("/dev/full", path)
    elif kind == "folder":
        path.mkdir()
    else:
        (tmp_path / "file").write_text("")
        path = tmp_path / "file" / "ledger.log"
    file = LineFile(path, told.append)
    for _ in range(100):
        file.write("line")
    file.close()
    assert len(told) == 1
    assert str(path) in told[0]


def test_lines_go_on_when_there_is_room_again(tmp_path: Path) -> None:
    path, told = tmp_path / "ledger.log", list[str]()
    os.symlink("/dev/full", path)
    file = LineFile(path, told.append)
    file.write("lost")
    path.unlink()
    file.write("kept")
    file.close()
    assert path.read_text() == "kept\n"
