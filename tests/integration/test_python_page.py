"""Every block of docs/PYTHON.md runs: files are written, a worker serves them, the rest is run.

Owns the proof that what the page shows works as it stands.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import tidemill
from tests.integration.test_dev import started_roles
from tests.tidy.sources import ROOT

PAGE = ROOT / "docs" / "PYTHON.md"
BLOCK = re.compile(r"^## ([^\n]+)\n|^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\w+\.py)\n")
SECONDS = 120.0

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Block:
    """One block of code and the heading above it."""

    heading: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that it is; None for what is run."""
        found = FILE.match(self.text)
        return None if found is None else found[1]


def blocks_of_page() -> list[Block]:
    found, heading = [], ""
    for title, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        heading = title or heading
        if text:
            found.append(Block(heading, text))
    return found


BLOCKS = blocks_of_page()
RUN = [block for block in BLOCKS if block.file is None]


@pytest.fixture(scope="module")
def served(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the page's files, with a worker that serves them all; its environment in it."""
    folder = tmp_path_factory.mktemp("page")
    files = {block.file: block.text for block in BLOCKS if block.file is not None}
    for name, text in files.items():
        (folder / name).write_text(text)
    env = environment(kafka)
    apply = [sys.executable, "-m", "tidemill", "topics", "apply"]
    subprocess.run(apply, env=env, check=True, timeout=SECONDS)
    with (folder / "roles.log").open("a+") as log:
        roles = started_roles(env, folder, log, ("worker", *files))
        try:
            yield folder
        finally:
            for role in roles:
                role.terminate()
            for role in roles:
                role.wait(SECONDS)


def environment(kafka: str) -> dict[str, str]:
    return {**os.environ, "TIDEMILL_KAFKA": kafka, "TIDEMILL_TOPIC_PREFIX": "page-of-python."}


@pytest.mark.parametrize(
    "number", range(len(RUN)), ids=[f"{n}-{block.heading}" for n, block in enumerate(RUN)]
)
def test_each_block_runs(number: int, served: Path, kafka: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN[number].text], cwd=served, env=environment(kafka),
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )
    assert done.returncode == 0, done.stderr + (served / "roles.log").read_text()[-3000:]


def test_the_page_names_all_that_is_public() -> None:
    page = PAGE.read_text(encoding="utf-8")
    documented_elsewhere = {"ClientError", "CommandReceipt", "CompletedJob"}  # what calls return
    public = {name for name in tidemill.__all__ if not name.startswith("_")}
    assert {name for name in public - documented_elsewhere if name not in page} == set()


def test_each_parameter_of_job_is_in_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in ("queue", "max_attempts", "timeout_seconds", "backoff", "limits", "unique_by",
                 "process"):
        assert f"| `{name}" in page
