"""docs/TESTING_HANDLERS.md: its files are written down, and pytest runs them with the plugin."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

from tests.tidy.sources import ROOT

PAGE: Final = ROOT / "docs" / "TESTING_HANDLERS.md"
BLOCK: Final = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SECONDS: Final = 120.0
NEVER_LOADED: Final = ("confluent_kafka", "faust", "aiokafka", "clickhouse_connect", "chdb")


def test_the_examples_of_the_page_pass(tmp_path: Path) -> None:
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) == PAGE.read_text().count("```python") == 5
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        # The entry point of an installation is left out, so that both ways of loading are one.
        [sys.executable, "-m", "pytest", "-q", "-p", "no:tidemill", "-p", "tidemill.pytest_plugin",
         "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "--rootdir", str(tmp_path)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True,
        text=True, timeout=SECONDS, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 passed" in done.stdout


def test_the_plugin_is_declared_and_loads_nothing_of_the_engine() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = settings["project"]["entry-points"]["pytest11"]
    assert declared == {"tidemill": "tidemill.pytest_plugin"}
    code = (
        "import pytest, sys; before = set(sys.modules); import tidemill.pytest_plugin;"
        "print(*sorted(n for n in set(sys.modules) - before if n.startswith('tidemill')))"
    )
    assert _printed(code) == "tidemill tidemill.pytest_plugin"


def test_an_engine_runs_without_kafka_and_clickhouse() -> None:
    code = (
        "import sys\n"
        f"for name in {NEVER_LOADED!r}: sys.modules[name] = None\n"
        "from tidemill import job\n"
        "from tidemill.testing import Engine\n"
        "@job('sum')\n"
        "async def add(payload: dict) -> int: return sum(payload['of'])\n"
        "with Engine() as engine:\n"
        "    found = engine.enqueue('sum', {'of': [1, 2]})\n"
        "    engine.run()\n"
        "    print(found.status, found.result)\n"
    )
    assert _printed(code) == "succeeded 3"


def test_what_is_not_installed_is_named_with_the_way_out() -> None:
    code = (
        "import sys; sys.modules['librt'] = None\n"
        "import tidemill.testing\n"
        "try: tidemill.testing.Engine\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    assert _printed(code) == "tidemill.testing needs librt: pip install 'tidemill[testing]'"


def _printed(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True,
        cwd=ROOT,
    )
    return done.stdout.strip()
