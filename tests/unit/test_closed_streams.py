"""A command whose stdin, stdout or stderr is closed works as one whose words go nowhere."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from functools import partial

import pytest

SCRIPT = """
import os, socket, sys
from tidemill.cli import main
sys.argv = ["tidemill", "--version"]
try:
    main()
except SystemExit as error:
    code = error.code
for number in (0, 1, 2):
    os.fstat(number)
mine = socket.socket()
assert mine.fileno() > 2, mine
print("a word", file=sys.stderr)
os._exit(code or 0)
"""
CLOSED = [
    numbers for count in (1, 2, 3) for numbers in itertools.combinations((0, 1, 2), count)
]


def close_all(numbers: tuple[int, ...]) -> None:
    for number in numbers:
        os.close(number)


@pytest.mark.parametrize("numbers", CLOSED)
def test_closed_streams_go_nowhere(numbers: tuple[int, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, timeout=60, preexec_fn=partial(close_all, numbers),
    )
    assert done.returncode == 0, done.stderr
    assert ("a word" in done.stderr) is (2 not in numbers)
    assert bool(done.stdout) is (1 not in numbers)
