"""What of a role's process stays ours: stdin, readiness, lines of the log, whatever user code does.

Each case runs in a process of its own, all at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0  # far above what any case takes

HEAD = """
import io, logging, logging.config, os, subprocess, sys
from tidemill.agents import own_streams
own_streams.keep()
from tidemill.agents.logging import configure_logging, announce_ready
ours = logging.getLogger("tidemill.worker")
configure_logging("worker", "console", "info")
"""
TAIL = """
logging.getLogger("tidemill.worker").info("line of ours")
logging.getLogger("tidemill.agents.dev").warning("another of ours")
announce_ready("worker")
assert subprocess.run(["cat"], capture_output=True, timeout=30).stdout == b""
assert own_streams.words().readline() == "go\\n"
"""

CASES = {
    "nothing": "",
    "basicConfig": "logging.basicConfig(level=logging.CRITICAL)",
    "basicConfig by force": "logging.basicConfig(level=logging.CRITICAL, force=True)",
    "disable": "logging.disable(logging.CRITICAL)",
    "dictConfig": "logging.config.dictConfig({'version': 1, 'root': {'level': 'ERROR'}})",
    "dictConfig with a console": "logging.config.dictConfig({'version': 1, 'handlers': {'c': "
        "{'class': 'logging.StreamHandler'}}, 'root': {'level': 'DEBUG', 'handlers': ['c']}})",
    "another handler": "logging.getLogger().addHandler(logging.StreamHandler())",
    "no handlers": "logging.getLogger().handlers.clear()",
    "shutdown": "logging.shutdown()",
    "root level": "logging.getLogger().setLevel(logging.CRITICAL)",
    "another stdout": "sys.stdout = sys.stderr = io.StringIO()",
    "closed streams": "sys.stdout.close(); sys.stderr.close()",
    "closed descriptors": "os.close(1); os.close(2)",
    "stdin read": "sys.stdin.read(); input_is_empty = True",
    "stdin closed": "os.close(0); os.open(os.devnull, os.O_RDONLY)",
    "folder and mask": "os.chdir('/'); os.umask(0o777)",
}


@pytest.fixture(scope="module")
def ended() -> dict[str, tuple[int, str, str]]:
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-c", HEAD + case + TAIL], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "TIDEMILL_NATIVE": "0"},
        )
        for name, case in CASES.items()
    }
    found = {}
    for name, process in processes.items():
        out, err = process.communicate("go\n", timeout=SECONDS)
        found[name] = (process.returncode, out, err)
    return found


@pytest.mark.parametrize("name", CASES)
def test_our_streams_and_lines_are_ours(
    name: str, ended: dict[str, tuple[int, str, str]]
) -> None:
    code, out, err = ended[name]
    assert code == 0, err
    assert err.count("line of ours") == 1, err
    assert err.count("another of ours") == 1, err
    assert out.count('"role_ready"') == 1
