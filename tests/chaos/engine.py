"""The engine as a user starts it: a broker and one process a role, restarted when they die.

Owns the processes, their logs and their deaths, ours and others'. Refuses to know what is checked
afterwards.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from tidemill.agents.embedded.broker import Broker

RESTART_SECONDS: Final = 0.3  # the first backoff of a supervisor
READY_SECONDS: Final = 60.0  # a role on a busy machine, restore included
STOP_SECONDS: Final = 20.0
LOOK_SECONDS: Final = 0.05
READY_MARK: Final = b'"role_ready"'
UNASKED_DEATHS_MAX: Final = 40  # then it is a crash loop and the run is over
LEDGERS: Final = ("ledger-0", "ledger-1")
WORKERS: Final = ("worker-0", "worker-1")
STACK: Final = "stack"


class EngineFailed(RuntimeError):
    """A role does not become ready or dies again and again. The text has the end of its log."""


@dataclass(frozen=True, slots=True)
class Death:
    """One end of a process; asked when this suite killed it."""

    role: str
    exit_code: int
    at: float
    is_asked: bool


class Role:
    """One role's process: started, killed, started again, its lines in one file."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, source: Path) -> None:
        self.name = name
        self.log = log
        self.argv = list(argv)
        self.env: dict[str, str] = {}
        self.source = source
        self.process: subprocess.Popen[bytes] | None = None
        self.is_asked_to_die = False
        self._read_from = 0

    def start(self) -> None:
        """Begin; a variable in `env` holds for this start only."""
        self._read_from = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as out:
            self.process = _spawn(self.argv, self.env, self.source, out)
        self.env = {}
        self.is_asked_to_die = False

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def exit_code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def is_ready(self) -> bool:
        """Whether the running process told so."""
        with self.log.open("rb") as lines:
            lines.seek(self._read_from)
            return READY_MARK in lines.read()

    def kill(self) -> None:
        """kill -9, as the kernel does it when memory is short: the process alone."""
        self.is_asked_to_die = True
        self.send(signal.SIGKILL)

    def send(self, number: int) -> None:
        """One signal to the process."""
        if self.exit_code() is None:
            os.kill(self.pid, number)

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace").splitlines()
        return "\n".join(text[-lines:])


def _spawn(
    argv: list[str], env: dict[str, str], source: Path, out: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=source,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **env}, start_new_session=True,
    )


class Engine:
    """Broker, two ledgers, two workers and the stack, in `folder`. Close it whatever happens.

    `source` is the tree that the roles run from: the checkout, or a scratch copy with a bug.
    `kafka` names a broker that runs already; without one the engine has a broker of its own.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kafka_port: int,
        clickhouse_port: int,
        http_port: int,
        source: Path,
        modules: Sequence[str] = ("tests/chaos/handlers.py", "tests/chaos/clockwork.py"),
        partitions: int = 4,
        ledgers: int = 2,
        workers: int = 2,
        with_history: bool = True,
        kafka: str | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.source = source
        self.broker = Broker(folder / "kafka", kafka_port)
        self.kafka = kafka or self.broker.bootstrap
        self.clickhouse = f"http://127.0.0.1:{clickhouse_port}" if with_history else None
        self.deaths: list[Death] = []
        self._partitions = partitions
        self._ports = (clickhouse_port, http_port)
        self._modules = list(modules)
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._is_closing = threading.Event()
        self._lock = threading.Lock()
        self.held: set[str] = set()  # roles that stay down
        names = [f"ledger-{n}" for n in range(ledgers)] + [f"worker-{n}" for n in range(workers)]
        self.roles = {
            name: self._role(name) for name in [*names, *([STACK] if with_history else [])]
        }

    def _role(self, name: str) -> Role:
        common = ["--kafka", self.kafka, "--partitions", str(self._partitions)]
        kind = name.split("-")[0]
        argv = [sys.executable, "-m", "tidemill", kind]
        if kind == "ledger":
            argv += [*common, "--instance-id", f"chaos-{name}"]
        elif kind == "worker":
            argv += [
                *self._modules, *common, "--worker-id", f"chaos-{name}",
                "--concurrency", "50", "--processes", "2",
            ]
        else:
            argv += [
                *common, "--instance-id", "chaos-sink",
                "--clickhouse", f"chdb://{self.folder / 'clickhouse'}",
                "--clickhouse-port", str(self._ports[0]), "--http-port", str(self._ports[1]),
            ]
        return Role(name, argv, self.folder / f"{name}.log", self.source)

    def start(self) -> None:
        """Broker, topics, all roles; returns when each is ready."""
        if self.kafka == self.broker.bootstrap:
            self.broker.start()
        # As a user would: the command that creates the topics.
        self._apply_topics()
        for role in self.roles.values():
            role.start()
        self._keeper.start()
        for name in self.roles:
            self.wait_ready(name)

    def _apply_topics(self) -> None:
        command = [
            sys.executable, "-m", "tidemill", "topics", "apply", "--kafka", self.kafka,
            "--partitions", str(self._partitions),
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.source, timeout=60)
        if done.returncode != 0:
            raise EngineFailed(f"topics apply: {done.stdout}{done.stderr}")

    def wait_ready(self, name: str, timeout: float = READY_SECONDS) -> None:
        """Until the role's running process told that it is ready."""
        role = self.roles[name]
        deadline = time.monotonic() + timeout
        while not (role.exit_code() is None and role.is_ready()):
            self.check_health()
            if time.monotonic() > deadline:
                raise EngineFailed(f"{name} is not ready after {timeout:g} s:\n{role.tail()}")
            time.sleep(LOOK_SECONDS)

    def check_health(self) -> None:
        """Raises EngineFailed when a role dies again and again."""
        unasked = [death for death in self.deaths if not death.is_asked]
        if len(unasked) > UNASKED_DEATHS_MAX:
            name = unasked[-1].role
            raise EngineFailed(f"{name} keeps dying:\n{self.roles[name].tail()}")

    def _keep(self) -> None:
        while not self._is_closing.wait(LOOK_SECONDS):
            for role in self.roles.values():
                code = role.exit_code()
                if code is None or role.name in self.held:
                    continue
                self.deaths.append(Death(role.name, code, time.time(), role.is_asked_to_die))
                if self._is_closing.wait(RESTART_SECONDS):
                    return
                with self._lock:
                    if not self._is_closing.is_set():
                        role.start()

    def stop(self) -> dict[str, int | None]:
        """SIGTERM to workers, then the rest; the exit code of each role, None when it hung."""
        self._end_keeping()
        codes: dict[str, int | None] = {}
        ordered = sorted(self.roles, key=lambda name: not name.startswith("worker"))
        for name in ordered:
            self.roles[name].send(signal.SIGCONT)
            self.roles[name].send(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for name in ordered:
            process = self.roles[name].process
            if process is None:
                continue
            try:
                codes[name] = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                codes[name] = None
        return codes

    def close(self) -> None:
        """End everything that is left, broker included."""
        self._end_keeping()
        for role in self.roles.values():
            if role.process is not None and role.exit_code() is None:
                role.send(signal.SIGCONT)
                role.send(signal.SIGKILL)
                role.process.wait()
        self.broker.kill()

    def _end_keeping(self) -> None:
        with self._lock:
            self._is_closing.set()
        if self._keeper.is_alive():
            self._keeper.join()
