"""`python -m tools.generate`: write what is stale; with --check, only say so and exit with 1."""

from __future__ import annotations

import sys

from tools.generate import stale, write_all


def main(arguments: list[str]) -> int:
    """0 when all is fresh, or has been written."""
    if arguments not in ([], ["--check"]):
        print("usage: python -m tools.generate [--check]", file=sys.stderr)
        return 2
    if arguments:
        found = stale()
        for path in found:
            print(f"stale: {path}; run `make docs`")
        return 1 if found else 0
    for path in write_all():
        print(f"wrote {path}")
    return 0


sys.exit(main(sys.argv[1:]))
