"""`python -m tests.containers`: the suites of real parts over containers, where that is possible.

`--required` ends with 1 where no Docker daemon answers; without it the run is skipped with a line.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from tests.containers.daemon import no_daemon
from tests.containers.parts import ROOT

# The same files that run over the embedded broker and engine.
SUITES: Final = (
    "tests/strangers",
    "tests/integration/test_sink.py",
    "tests/integration/test_queries.py",
    "tests/integration/test_roles_apart.py",
    "tests/integration/test_runtime.py",
    "tests/integration/test_claim.py",
    "tests/integration/test_worker.py",
    "tests/integration/test_client.py",
)


def main(arguments: Sequence[str]) -> int:
    """Exit code of pytest; 0 when skipped."""
    if (reason := no_daemon()) is not None:
        print(f"skipped: tests over containers: {reason}")
        return 1 if "--required" in arguments else 0
    command = [sys.executable, "-m", "pytest", "-p", "tests.containers.plugin", *SUITES]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
