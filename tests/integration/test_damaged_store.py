"""An embedded ClickHouse folder that is damaged: what is lost is told with the way out, and what
cannot be opened ends the start with its code. Over the real engine, in a process for each folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tidemill.agents import exit_codes

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0
# Opens a folder as the sink does at its start; with rows where it is asked for some.
SCRIPT = """
import logging, sys
from datetime import UTC, datetime
from tidemill.agents.clickhouse.engine import EngineError
from tidemill.agents.sink.main import _first_line, _start_code, open_migrated
from tests.page.sample import insert, make_sample
logging.basicConfig(stream=sys.stdout)
try:
    engine = open_migrated("chdb://" + sys.argv[1], give_up_seconds=1.0)
except EngineError as error:
    print(_first_line(error))
    sys.exit(_start_code(error))
if sys.argv[2:]:
    insert(engine, make_sample(datetime.now(UTC), jobs=200))
print("rows", engine.query("SELECT count() AS n FROM job_events")[0]["n"])
engine.close()
"""


def opened(folder: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), *words], cwd=ROOT, timeout=SECONDS,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace", check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows."""
    folder = tmp_path_factory.mktemp("sound") / "clickhouse"
    code, said = opened(folder, "fill")
    assert code == 0, said
    assert "rows are missing" not in said
    return folder


def files_of(folder: Path, table: str) -> Path:
    """Where the parts of a table are."""
    return (folder / "data" / "default" / table).resolve()


def definition(folder: Path, table: str) -> Path:
    return folder / "metadata" / "default" / f"{table}.sql"


def cut_definition(folder: Path) -> None:
    os.truncate(definition(folder, "job_events"), 100)


def empty_definition(folder: Path) -> None:
    os.truncate(definition(folder, "jobs_latest"), 0)


def random_definition(folder: Path) -> None:
    definition(folder, "job_minutes").write_bytes(os.urandom(400))


def folder_for_definition(folder: Path) -> None:
    definition(folder, "jobs").unlink()
    definition(folder, "jobs").mkdir()


def of_a_newer_version(folder: Path) -> None:
    path = definition(folder, "log_gaps")
    path.write_text(path.read_text().replace("ReplacingMergeTree", "MergeTreeOfTomorrow"))


def lost_definition(folder: Path) -> None:
    definition(folder, "job_minutes").unlink()


def copied_without_links(folder: Path) -> None:
    """As by `cp -rL`."""
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    shutil.rmtree(folder)
    copy.rename(folder)


HOPELESS = (
    cut_definition, empty_definition, random_definition, folder_for_definition,
    of_a_newer_version, lost_definition, copied_without_links,
)


def random_part(folder: Path) -> None:
    for part in files_of(folder, "job_events").glob("*_*_*_*"):
        (part / "checksums.txt").write_bytes(os.urandom(64))


def cut_part(folder: Path) -> None:
    for part in files_of(folder, "job_events").glob("*_*_*_*"):
        for data in part.glob("*.bin"):
            os.truncate(data, 10)


def lost_events(folder: Path) -> None:
    shutil.rmtree(files_of(folder, "job_events"))


def lost_minutes(folder: Path) -> None:
    shutil.rmtree(files_of(folder, "job_minutes"))


def lost_jobs(folder: Path) -> None:
    shutil.rmtree(files_of(folder, "jobs_latest"))


LOSSES = (random_part, cut_part, lost_events, lost_minutes, lost_jobs)


def nothing(_folder: Path) -> None:
    """As it was."""


def lost_marks(folder: Path) -> None:
    shutil.rmtree(files_of(folder, "sink_marks"))


HARMLESS = (nothing, lost_marks)


def after(damage: Callable[[Path], None], sound: Path, tmp_path: Path) -> tuple[Path, int, str]:
    folder = tmp_path / "clickhouse"
    shutil.copytree(sound, folder, symlinks=True)
    damage(folder)
    return folder, *opened(folder)


@pytest.mark.parametrize("damage", HOPELESS)
def test_what_cannot_be_opened_ends_the_start_with_the_way_out(
    damage: Callable[[Path], None], sound: Path, tmp_path: Path
) -> None:
    folder, code, said = after(damage, sound, tmp_path)
    assert code == exit_codes.DAMAGED
    assert code in exit_codes.HOPELESS
    (line,) = said.splitlines()
    assert f"move {folder} away and start again" in line
    assert "DB::Exception" not in line
    # The way out is one.
    folder.rename(tmp_path / "away")
    assert opened(folder) == (0, "rows 0\n")


@pytest.mark.parametrize("damage", LOSSES)
def test_rows_that_are_lost_are_told_at_the_start(
    damage: Callable[[Path], None], sound: Path, tmp_path: Path
) -> None:
    folder, code, said = after(damage, sound, tmp_path)
    assert code == 0
    assert "rows are missing" in said
    assert f"move {folder} away" in said


@pytest.mark.parametrize("damage", HARMLESS)
def test_what_is_whole_is_not_blamed(
    damage: Callable[[Path], None], sound: Path, tmp_path: Path
) -> None:
    _, code, said = after(damage, sound, tmp_path)
    assert code == 0
    assert "rows are missing" not in said
    assert "rows 0" not in said
