"""The build itself, a script of its own: mypyc and setuptools want a process and a folder to rule.

usage: extension.py OPTIMISATION SOURCE...   (in the folder of the sources; writes to ./out)
"""

from __future__ import annotations

import sys

from mypyc.build import mypycify
from setuptools import Distribution

GROUP = "tidemill_core"  # names the library: `tidemill.schemas.native.LIBRARY`


def main(optimisation: str, *sources: str) -> None:
    extensions = mypycify(
        [*sources], opt_level=optimisation, debug_level="0", group_name=GROUP,
        strict_dunder_typing=True,
    )
    distribution = Distribution({"name": GROUP, "ext_modules": extensions})
    command = distribution.get_command_obj("build_ext")
    command.build_lib, command.build_temp = "out", "temp"
    distribution.run_command("build_ext")


if __name__ == "__main__":
    main(*sys.argv[1:])
