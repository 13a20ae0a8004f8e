"""What the peers written for Node share: installing from a lock file and starting a program.

It refuses to know which library is measured.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from benchmarks.processes import (
    READY_SECONDS,
    Child,
    cache_folder,
    copy_sources,
    mark_installed,
    run_step,
)
from benchmarks.program import MissingError

SOURCES = Path(__file__).resolve().parent / "sources"

# Both libraries ask for less; the programs use `node:timers/promises` and top-level await.
NODE_MINIMUM = 18


def install_node_peer(name: str) -> Path:
    """Installs `sources/<name>` by npm and returns the folder; nothing is done twice."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            raise MissingError(f"{tool} is not on PATH; install Node.js {NODE_MINIMUM} or newer")
    here = Path.cwd()
    version = run_step(["node", "--version"], cwd=here).strip()
    major = re.match(r"v(\d+)\.", version)
    if major is None or int(major[1]) < NODE_MINIMUM:
        raise MissingError(f"Node.js {NODE_MINIMUM} or newer is needed, found {version}")
    folder = cache_folder(name)
    if not copy_sources(SOURCES / name, folder):
        # `npm install` takes versions and hashes from the lock as `npm ci` does, but does not
        # refuse a lock that lacks the optional binaries of other platforms.
        run_step(
            ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=folder,
        )
        mark_installed(folder)
    return folder


def start_node(folder: Path, role: str, address: str) -> Child:
    """Starts `program.mjs ROLE ADDRESS` and waits until it says that it is ready."""
    child = Child(
        ["node", "program.mjs", role, address],
        cwd=folder,
        log=folder / f"{role}.log",
        talks=True,
        env={"NODE_ENV": "production", "NO_LOG_SUCCESS": "1"},
    )
    try:
        child.answer(READY_SECONDS)
    except BaseException:
        child.stop()
        raise
    return child
