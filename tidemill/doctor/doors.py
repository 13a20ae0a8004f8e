"""Who else could get in: the data folder's modes, and an address that others can reach.

Owns the checks of settings and files of this machine. Refuses to knock at any port.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tidemill.agents.callers import is_loopback
from tidemill.agents.private_files import OTHERS, STACK_ENTRIES
from tidemill.agents.settings import ENV_PREFIX, CommonSettings
from tidemill.doctor.finding import Check, Finding

SHOWN_MAX: Final = 3  # files that are named


def data_folder(settings: CommonSettings) -> Finding:
    check, data = "data folder", settings.data.expanduser()
    if not data.is_dir():
        return Finding(check, "ok", f"{str(data)!r} is not there: nothing was kept here")
    found = []
    for path in _open_to_others(data):
        found.append(repr(str(path)))
        if len(found) > SHOWN_MAX:
            break
    if not found:
        return Finding(check, "ok", f"{str(data)!r} is its owner's alone")
    more = " and more" if len(found) > SHOWN_MAX else ""
    return Finding(
        check, "failed", f"others may use {', '.join(found[:SHOWN_MAX])}{more}",
        "the next start of `tidemill dev` mends it; now: chmod -R go= of these",
    )


def _open_to_others(data: Path) -> Iterator[Path]:
    inside = [data / name for name in STACK_ENTRIES if (data / name).exists()]
    if not inside:
        return  # no folder of ours
    for path in (data, *inside):
        if path.stat().st_mode & OTHERS:
            yield path
    for top in inside:
        for where, folders, files in os.walk(top):
            for name in (*folders, *files):
                path = Path(where, name)
                if not path.is_symlink() and path.exists() and path.stat().st_mode & OTHERS:
                    yield path


def address(settings: CommonSettings) -> Finding:
    check, host = "page and API", settings.http_host
    if is_loopback(host):
        return Finding(check, "ok", f"only this machine reaches {host}")
    if settings.token is None:
        return Finding(
            check, "failed", f"{host!r} can be reached from other machines, and there is no token",
            f"set {ENV_PREFIX}TOKEN (an empty one is none), or {ENV_PREFIX}HTTP_HOST=127.0.0.1",
        )
    return Finding(check, "ok", f"others reach {host!r} with the token")


CHECKS: Final = (Check("data folder", data_folder), Check("page and API", address))
