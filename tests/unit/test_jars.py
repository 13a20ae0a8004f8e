"""The download of Kafka, with the network replaced: it ends when it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tidemill.agents.embedded.jars import pinned_jars

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 30.0
DOWNLOADS_FOR_EVER = """
import os, pathlib, signal, sys, time
from tidemill.agents.embedded import jars

# A shell's job in the background has Ctrl-C switched off.
signal.signal(signal.SIGINT, signal.default_int_handler)

def hang(*_):
    os.write(1, b"downloading\\n")  # whole: two threads come here
    time.sleep(600)

jars._resolve = hang
jars.ensure_jars(folder=pathlib.Path(sys.argv[1]))
"""


def test_ctrl_c_ends_a_download_that_hangs(tmp_path: Path) -> None:
    (tmp_path / ".part-of-one-that-was-stopped").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", DOWNLOADS_FOR_EVER, str(tmp_path)],
        cwd=ROOT, env={**os.environ, "HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"downloading\n"
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert b"KeyboardInterrupt" in told
    assert [path.name for path in tmp_path.glob(".part-*")] == []
    # How much is fetched is told before the first byte is asked for.
    size = sum(jar.size for jar in pinned_jars("broker"))
    assert f"{len(pinned_jars('broker'))} files, {size / 1e6:.0f} MB" in told.decode()
