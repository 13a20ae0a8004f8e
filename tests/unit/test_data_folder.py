"""What `dev` says of a data folder that cannot be used, before it starts anything."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from pathlib import Path

import pytest

from tidemill.agents import exit_codes, private_files
from tidemill.agents.dev import DevError, _held_folder


def refusal(folder: Path) -> DevError:
    with pytest.raises(DevError) as caught, _held_folder(folder, print):
        pytest.fail("the folder was taken")
    return caught.value


def test_a_disk_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_files, "DISK_BYTES_MIN", 1 << 62)
    error = refusal(tmp_path / "data")
    assert error.exit_code == exit_codes.CONFIG
    assert "MB left" in str(error)
    assert "free some space; choose another with --data" in str(error)


def test_a_folder_that_another_run_holds_is_refused(tmp_path: Path) -> None:
    told: list[str] = []
    with _held_folder(tmp_path, told.append):
        error = refusal(tmp_path)
    assert error.exit_code == exit_codes.IN_USE
    assert "another `tidemill dev` uses" in str(error)
    with _held_folder(tmp_path, told.append):
        assert not told


def _as_somebody(folder: Path) -> None:
    os.setgroups([])
    os.setgid(65_534)
    os.setuid(65_534)
    try:
        with _held_folder(folder, lambda _: None):
            os._exit(1)
    except DevError as error:
        is_told = "Permission denied" in str(error) and "--data" in str(error)
        os._exit(0 if error.exit_code == exit_codes.CONFIG and is_told else 2)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("mode", [0o555, 0o755, 0o700])
def test_a_folder_of_another_user_is_refused(mode: int) -> None:
    # pytest's own folders are closed to others.
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o755)
        folder = Path(top) / "data"
        folder.mkdir(mode=0o700)
        folder.chmod(mode)
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_as_somebody, args=(folder,))
        process.start()
        process.join(60)
        assert process.exitcode == 0
