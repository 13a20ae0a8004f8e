"""Brings what the tests and benchmarks use from Debian: `python -m tests.debian chromium`.

Owns: which package gives which command, and whether it may be installed here. It never fails: what
cannot be had is named with the reason, and the tests that need it say so again when they skip.
Refuses to know: what the commands are used for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

# The commands of which any one will do, by the name of the package that brings the first.
COMMANDS = {
    "chromium": ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
    "redis-server": ("redis-server",),
    "postgresql": ("psql",),
}
# A mirror that is slow delivers some 200 MB in this time; a hanging one must not stop the tests.
APT_TIMEOUT_SECONDS = 420


def find(package: str) -> str | None:
    """The path of a command that this package brings; None when none is installed."""
    paths = (shutil.which(command) for command in COMMANDS.get(package, (package,)))
    return next((path for path in paths if path is not None), None)


def install(packages: Sequence[str]) -> dict[str, str]:
    """Install what is missing. Gives, for each package that could not be had, the reason."""
    missing = [package for package in packages if find(package) is None]
    if not missing:
        return {}
    prefix = _privilege()
    if prefix is None:
        return dict.fromkeys(missing, "not installed, and installing needs root or sudo")
    if shutil.which("apt-get") is None:
        return dict.fromkeys(missing, "not installed, and this system has no apt-get")
    print(f"installing from Debian: {' '.join(missing)}", flush=True)
    reason = _apt(prefix, "update") or _apt(
        prefix, "install", "--yes", "--no-install-recommends", *missing
    )
    return {p: reason or "not found after installing" for p in missing if find(p) is None}


def _privilege() -> list[str] | None:
    """What to put before a command so that it may install; None when nothing would help."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        return None
    may = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
    return ["sudo", "-n"] if may else None


def _apt(prefix: list[str], *arguments: str) -> str | None:
    """Run apt-get; None when it went well, else why not."""
    # Another apt on the machine is waited for, a question is never asked.
    command = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    command += ["-o", "DPkg::Lock::Timeout=60", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=APT_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"apt-get {arguments[0]} took more than {APT_TIMEOUT_SECONDS} s"
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
    return "; ".join(lines) or f"apt-get {arguments[0]} ended with {done.returncode}"


def main(packages: Sequence[str]) -> None:
    """Say for each package where it is, or that what needs it will be skipped, and why."""
    refused = install(packages)
    for package in packages:
        if package in refused:
            print(f"skipped: what needs {package} ({refused[package]})")
        else:
            print(f"{package}: {find(package)}")


if __name__ == "__main__":
    main(sys.argv[1:])
