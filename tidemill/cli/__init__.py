"""The command line. `main` is what the script `tidemill` calls.

Owns the commands' names, the way from exceptions to a message and an exit code. Refuses to know
what the commands do: each imports what it needs when it runs, so that `tidemill --help` is quick.
"""

from __future__ import annotations

import faulthandler
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit with a code of `agents.exit_codes`."""
    # Kafka's client is native code: a crash there shall say where.
    faulthandler.enable()
    from tidemill.shadowing import ShadowedPackage, check_not_shadowed

    try:
        check_not_shadowed()
    except ShadowedPackage as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(78)
    from agents.supervisor import tie_to_supervisor
    from schemas.native import NativeCoreMissing

    tie_to_supervisor()
    from tidemill.cli.app import run

    try:
        sys.exit(run())
    except NativeCoreMissing as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(78)
