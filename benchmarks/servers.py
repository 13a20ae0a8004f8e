"""The peers' servers: Redis and Postgres as Debian ships them, on loopback, in temporary folders.

Owns: finding or installing them, their settings, start and end. It refuses to know who uses them.

Settings, and why they are fair:
- Redis: `appendonly no`, no snapshots. It is what BullMQ's own published numbers use, and the
  fastest choice: what is in Redis is lost with it. Tidemill and the Postgres peers do keep theirs.
- Postgres: the defaults of `initdb`, so `fsync=on` and `synchronous_commit=on`: an acknowledged
  job survives a power cut.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from benchmarks.processes import (
    READY_SECONDS,
    Child,
    discard,
    run_step,
    wait_until,
)
from benchmarks.program import MissingError
from tidemill.agents.embedded.ports import free_port

REDIS_SETTINGS = "Redis: appendonly no, save off (what is in it is lost with it)"
POSTGRES_SETTINGS = "Postgres: initdb's defaults, fsync on, synchronous_commit on"

POSTGRES_USER = "postgres"
DEBIAN_POSTGRES = Path("/usr/lib/postgresql")
POLL_SECONDS = 0.05


def install_debian(package: str) -> None:
    """`apt-get install` where that is allowed; otherwise `MissingError` with the command."""
    command = f"apt-get install -y --no-install-recommends {package}"
    if shutil.which("apt-get") is None:
        raise MissingError(f"{package} is not installed, and there is no apt-get to install it")
    if os.geteuid() != 0:
        raise MissingError(f"{package} is not installed; as root: {command}")
    here = Path.cwd()
    # RUNLEVEL=1 keeps Debian from starting the service that it just installed.
    quiet = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    try:
        run_step(command.split(), cwd=here, env=quiet)
    except MissingError:
        # Most often there is just no package list yet, as in a fresh container.
        run_step(["apt-get", "update"], cwd=here, env=quiet)
        run_step(command.split(), cwd=here, env=quiet)


def redis_server() -> str:
    """The path of `redis-server`, installed when absent."""
    if shutil.which("redis-server") is None:
        install_debian("redis-server")
    found = shutil.which("redis-server")
    if found is None:
        raise MissingError("redis-server was installed but is not on PATH")
    return found


def postgres_folder() -> Path:
    """The folder with `initdb` and `postgres`, installed when absent."""
    found = _find_postgres()
    if found is None:
        install_debian("postgresql")
        found = _find_postgres()
    if found is None:
        raise MissingError("postgresql was installed but its initdb was not found")
    return found


def _find_postgres() -> Path | None:
    versions = [path for path in DEBIAN_POSTGRES.glob("*/bin") if (path / "initdb").exists()]
    if versions:
        return max(versions, key=lambda path: float(path.parent.name))
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Redis:
    """A Redis of ours; `url` is good between `start` and `stop`."""

    def __init__(self) -> None:
        self.port = 0
        self._folder: Path | None = None
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="bench-redis-"))
        self.port = free_port()
        command = [
            redis_server(),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self._folder),
            "--appendonly",
            "no",
            "--save",
            "",
        ]
        self._child = Child(command, log=self._folder / "log")
        wait_until(lambda: _accepts(self.port), READY_SECONDS, "Redis's start", POLL_SECONDS)

    def flush(self) -> None:
        """Removes all keys."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            if not connection.recv(64).startswith(b"+OK"):
                raise MissingError("Redis refused FLUSHALL")

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
        if self._folder is not None:
            discard(self._folder)
        self._child = self._folder = None


class Postgres:
    """A Postgres of ours; `url` is good between `start` and `stop`."""

    def __init__(self) -> None:
        self.port = 0
        self._folder: Path | None = None
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return f"postgres://bench@127.0.0.1:{self.port}/postgres?sslmode=disable"

    def start(self) -> None:
        binaries = postgres_folder()
        self._folder = Path(tempfile.mkdtemp(prefix="bench-postgres-"))
        user = self._owner(self._folder)
        data = self._folder / "data"
        self._initdb(binaries, data, user)
        self.port = free_port()
        command = [
            str(binaries / "postgres"),
            "-D",
            str(data),
            "-p",
            str(self.port),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            f"unix_socket_directories={self._folder}",
        ]
        self._child = Child(command, log=self._folder / "log", cwd=self._folder, user=user)
        wait_until(lambda: _accepts(self.port), READY_SECONDS, "Postgres's start", POLL_SECONDS)

    @staticmethod
    def _owner(folder: Path) -> str | None:
        """Postgres refuses to run as root: then the folder goes to Debian's own user for it."""
        if os.geteuid() != 0:
            return None
        try:
            account = pwd.getpwnam(POSTGRES_USER)
        except KeyError as error:
            raise MissingError(
                f"Postgres does not run as root, and there is no user {POSTGRES_USER!r}"
            ) from error
        os.chown(folder, account.pw_uid, account.pw_gid)
        return POSTGRES_USER

    @staticmethod
    def _initdb(binaries: Path, data: Path, user: str | None) -> None:
        command = [str(binaries / "initdb"), "-D", str(data), "-U", "bench", "--auth=trust"]
        done = subprocess.run(
            command,
            cwd=data.parent,
            capture_output=True,
            text=True,
            check=False,
            user=user,
            group=user,
            extra_groups=[] if user else None,
        )
        if done.returncode != 0:
            raise MissingError(f"initdb failed: {done.stderr.strip()}")

    def stop(self) -> None:
        if self._child is not None:
            # SIGINT is Postgres's fast shutdown: it does not wait for clients.
            self._child.stop(signal.SIGINT)
        if self._folder is not None:
            discard(self._folder)
        self._child = self._folder = None
