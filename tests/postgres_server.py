"""A Postgres server of the tests' own, from Debian's package where that is installed.

Owns its folder, its start and its end. Refuses to know tables.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from tests.waiting import wait_until
from tidemill.agents.embedded.ports import free_port

SECONDS: Final = 60.0
DEBIAN_BINARIES: Final = "/usr/lib/postgresql"


def _program(name: str) -> str | None:
    found = sorted(Path(DEBIAN_BINARIES).glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


@contextmanager
def postgres_server() -> Iterator[str | None]:
    """The address of a server that lives as long as the block; None where none is installed."""
    initdb, server = _program("initdb"), _program("postgres")
    if initdb is None or server is None:
        yield None
        return
    user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="tidemill-pg-"))
    if user is not None:
        shutil.chown(folder, user)
    data, port = folder / "data", free_port()
    try:
        subprocess.run(
            [initdb, "-D", str(data), "-A", "trust", "-U", "tidemill", "-E", "UTF8", "--no-sync"],
            user=user, cwd=folder, check=True, capture_output=True,
        )
        with subprocess.Popen(
            [server, "-D", str(data), "-p", str(port), "-k", str(folder), "-F",
             "-c", "listen_addresses=127.0.0.1"],
            user=user, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as running:
            dsn = f"postgresql+psycopg://tidemill@127.0.0.1:{port}/postgres"
            try:
                wait_until(lambda: _answers(dsn), SECONDS, "Postgres does not answer")
                yield dsn
            finally:
                running.send_signal(signal.SIGINT)
                running.wait(SECONDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answers(dsn: str) -> bool:
    engine = create_engine(dsn)
    try:
        with suppress(OperationalError), engine.connect():
            return True
        return False
    finally:
        engine.dispose()
