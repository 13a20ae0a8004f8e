"""The language model on this machine: started by the first process that asks, shared by all.

Owns the folder with the model's file, who starts the server and who keeps it alive. Refuses to know
what is asked. The model is Gemma 3 (270 M parameters); its terms of use apply to what one does with
it: https://ai.google.dev/gemma/terms.

Folder: the model's file, server.json (the address), server.log, start.lock (held while one process
starts the server), users.lock (held shared by each process that uses the server). The kernel drops
a lock with its process, so a server whose last user is gone ends, however that user went.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Final

FOLDER_VARIABLE: Final = "LOCAL_MODEL_FOLDER"
START_SECONDS_MAX: Final = 120.0  # joining the parts and loading take 2 s on an idle machine
HEALTH_SECONDS: Final = 10.0  # a server that computes on all cores answers late
POLL_SECONDS: Final = 0.05
CHECKOUT: Final = Path(__file__).resolve().parents[2]  # where `systems` is found
LOG_CHARACTERS: Final = 2000  # of the server's log in an error

_lock: Final = threading.Lock()
_held: Final[dict[Path, IO[str]]] = {}


class LocalModelError(Exception):
    """The model cannot be started here. The text says why."""


def default_folder() -> Path:
    """`LOCAL_MODEL_FOLDER`, else a folder in the user's cache."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tidemill-local-model"


def local_address(folder: Path | None = None) -> str:
    """The base address of the server, such as http://127.0.0.1:1234/v1; starts one if needed.

    Blocks for seconds at the first call. The server lives until this process ends or `leave`s.
    Raises LocalModelError.
    """
    folder = (default_folder() if folder is None else folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with _lock, (folder / "start.lock").open("a+") as start:
        fcntl.flock(start, fcntl.LOCK_EX)
        if folder not in _held:
            users = (folder / "users.lock").open("a+")
            fcntl.flock(users, fcntl.LOCK_SH)  # waits for a server that is just ending
            _held[folder] = users
        address = _running(folder)
        return _start(folder) if address is None else address


def leave(folder: Path) -> None:
    """This process uses the server no more. It ends by itself once nobody does."""
    with _lock:
        users = _held.pop(folder.resolve(), None)
    if users is not None:
        users.close()


def _running(folder: Path) -> str | None:
    try:
        told = json.loads((folder / "server.json").read_text())
        address = str(told["address"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return f"{address}/v1" if _is_healthy(address) else None


def _is_healthy(address: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address}/health", timeout=HEALTH_SECONDS) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _start(folder: Path) -> str:
    (folder / "server.json").unlink(missing_ok=True)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "systems.models.server", str(folder)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=CHECKOUT,
        )
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline:
        if (address := _running(folder)) is not None:
            # It may outlive this process; a thread takes its end, so that none is left over.
            threading.Thread(target=process.wait, name="local-model", daemon=True).start()
            return address
        if process.poll() is not None:
            break
        time.sleep(POLL_SECONDS)
    process.kill()
    process.wait()
    said = (folder / "server.log").read_text(errors="replace")[-LOG_CHARACTERS:]
    raise LocalModelError(
        f"the local model did not start within {START_SECONDS_MAX:g} s; {folder / 'server.log'}"
        f" ends with: {said}"
    )
