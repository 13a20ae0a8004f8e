"""The command line. `main` is what the script `tidemill` calls.

Owns the commands' names, the way from exceptions to a message and an exit code. Refuses to know
what the commands do: each imports what it needs when it runs, so that `tidemill --help` is quick.
"""

from __future__ import annotations

import faulthandler
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit with a code of `tidemill.agents.exit_codes`."""
    from tidemill.cli import streams

    streams.open_closed()
    # Kafka's client is native code: a crash there shall say where.
    faulthandler.enable()
    streams.use_utf8()
    from tidemill.installed import ROLE_EXTRAS, WrongVersion, check_installed

    try:
        if len(sys.argv) > 1 and sys.argv[1] in ROLE_EXTRAS:
            # Before the libraries are imported: what a wrong one raises says nothing to anybody.
            check_installed(ROLE_EXTRAS[sys.argv[1]])
    except WrongVersion as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(78)
    from tidemill.agents.supervisor import is_supervised, tie_to_supervisor
    from tidemill.schemas.native import NativeCoreMissing

    tie_to_supervisor()
    streams.prepare(is_supervised=is_supervised())
    word = streams.not_text(sys.argv[1:])
    if word is not None and sys.argv[1] not in streams.OWN_MODE_COMMANDS:
        sys.stderr.write(f"error: the argument {word} is not UTF-8; write it in UTF-8\n")
        sys.exit(2)
    from tidemill.cli.app import run

    try:
        sys.exit(run())
    except NativeCoreMissing as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(78)
