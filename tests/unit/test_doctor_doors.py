"""`doctor` finds planted faults of doors: modes of the data folder, an open address."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from tidemill.agents.settings import CommonSettings
from tidemill.doctor.doors import address, data_folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("kafka", "clickhouse", "logs"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data" / "dev.lock").touch()
    (tmp_path / "data" / "kafka" / "x.log").touch()
    for path in (tmp_path / "data").rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    (tmp_path / "data").chmod(0o700)
    return tmp_path / "data"


def test_a_private_folder_is_fine(data: Path) -> None:
    assert data_folder(CommonSettings(data=data)).verdict == "ok"
    assert data_folder(CommonSettings(data=data / "nothing")).verdict == "ok"


@pytest.mark.parametrize("place", ["", "dev.lock", "kafka", "kafka/x.log", "logs"])
@pytest.mark.parametrize("bits", [0o040, 0o004, 0o020, 0o001])
def test_what_others_may_use_is_found(data: Path, place: str, bits: int) -> None:
    path = data / place
    path.chmod(path.stat().st_mode | bits)
    found = data_folder(CommonSettings(data=data))
    assert found.verdict == "failed"
    assert str(path) in found.found
    assert "tidemill dev" in found.hint


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "tide.example"])
def test_an_open_address_without_a_token_is_found(host: str) -> None:
    found = address(CommonSettings(http_host=host))
    assert found.verdict == "failed"
    assert "TIDEMILL_TOKEN" in found.hint
    assert address(CommonSettings(http_host=host, token=SecretStr("  "))).verdict == "failed"
    assert address(CommonSettings(http_host=host, token=SecretStr("t"))).verdict == "ok"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
def test_loopback_is_fine(host: str) -> None:
    assert address(CommonSettings(http_host=host)).verdict == "ok"
