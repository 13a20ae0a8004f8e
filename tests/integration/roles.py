"""Roles of one installation as the command line starts them, for tests that name each of them.

Owns their start, their folder and their end with the test. Refuses to know what they are asked.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.chaos.engine import Role
from tests.tidy.sources import ROOT

LEDGER = ("ledger", "--instance-id", "one")
"""A ledger whose next process has its partitions at once."""


class Roles:
    """`env` is that of all of them. `ending` ends what is left."""

    def __init__(
        self, folder: Path, env: dict[str, str], ending: ExitStack, *, command_seconds: float
    ) -> None:
        self.folder = folder
        self.env = env
        self._ending = ending
        self._command_seconds = command_seconds  # the longest that a command may take
        self.roles: dict[str, Role] = {}

    def tidemill(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "tidemill", *words], env=self.env, cwd=self.folder,
            timeout=self._command_seconds, capture_output=True, text=True, check=False,
        )

    def begin(self, name: str, *words: str) -> Role:
        """A role that may not be ready yet."""
        role = self.roles[name] = Role(
            name, [sys.executable, "-m", "tidemill", *words], self.folder / f"{name}.log",
            self.folder,
        )
        role.env = self.env
        role.start()
        assert role.process is not None
        self._ending.callback(role.process.wait)
        self._ending.callback(role.process.kill)
        return role


@contextmanager
def ledger_and_worker(
    kafka: str, prefix: str, folder: Path, module: str, *, seconds: float
) -> Iterator[Roles]:
    """An installation of two partitions, whose worker runs the module in `folder`."""
    env = {
        **os.environ, "PYTHONPATH": str(ROOT), "TIDEMILL_KAFKA": kafka,
        "TIDEMILL_TOPIC_PREFIX": prefix, "TIDEMILL_PARTITIONS": "2",
    }
    with ExitStack() as ending:
        roles = Roles(folder, env, ending, command_seconds=seconds)
        applied = roles.tidemill("topics", "apply")
        assert applied.returncode == 0, applied.stderr
        roles.begin("ledger", *LEDGER)
        roles.begin("worker", "worker", module)
        yield roles
