"""`tidemill dev`: the whole engine on one machine, from one command.

Owns which processes make it up, where their files are, the order of start and stop, and the line
that says that it serves. Refuses to know how a process is kept alive (`tidemill.agents.supervisor`)
and how a broker is started (`tidemill.agents.embedded`).

Folder: kafka/ the broker, clickhouse/ the chDB folder, logs/ one file a role, dev.lock held while
it runs.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidemill.agents import exit_codes
from tidemill.agents import topics as topics_
from tidemill.agents.callers import family_of, http_address
from tidemill.agents.dev_lines import QuietStart, tell_handlers
from tidemill.agents.embedded.broker import Broker
from tidemill.agents.embedded.errors import EmbeddedError
from tidemill.agents.embedded.ports import free_port
from tidemill.agents.private_files import disk_fault, folder_fault, make_data_folder, private_umask
from tidemill.agents.reload import RELOAD_GRACE_SECONDS, ReloadedWorker
from tidemill.agents.settings import DEFAULT_HOST, StackSettings
from tidemill.agents.supervisor import (
    LOOK_SECONDS,
    SLOW_START_SECONDS,
    ChildProcess,
    Echo,
    Supervisor,
    describe_exit,
    role_argv,
)
from tidemill.schemas.topics import Topics

WORKER_STAGE: Final = 0
ENGINE_STAGE: Final = 1  # ledger, and sink with page: neither needs the other to end well
BROKER_STAGE: Final = 2
# Seconds from the first Ctrl-C until what is left of a stage is killed. All within 10 s, unless
# jobs may take longer to finish. Each role can be killed at any point without a loss, so a kill
# costs a restore and nothing else.
STOP_DEADLINES: Final = {WORKER_STAGE: 5.0, ENGINE_STAGE: 7.5, BROKER_STAGE: 9.5}
LEFT_LINES_MAX: Final = 3  # lines about files whose mode stays; more would say the same
DEV_STOP_GRACE_SECONDS: Final = 4.0  # running jobs may finish; below the worker stage's deadline


class DevError(Exception):
    """The stack cannot run here. `exit_code` is how the command ends."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class DevPlan:
    """What was asked for."""

    modules: Sequence[str]
    data: Path
    kafka_port: int
    clickhouse_port: int
    http_port: int
    settings: StackSettings
    concurrency: int | None = None
    workers: int = 1
    is_reloading: bool = False
    stop_grace_seconds: float = DEV_STOP_GRACE_SECONDS

    @property
    def stop_deadlines(self) -> dict[int, float]:
        """Of each stage: all of them wait for jobs that may finish."""
        more = max(0.0, self.stop_grace_seconds - DEV_STOP_GRACE_SECONDS)
        return {stage: seconds + more for stage, seconds in STOP_DEADLINES.items()}

    @property
    def kafka(self) -> str:
        return f"{DEFAULT_HOST}:{self.kafka_port}"

    @property
    def clickhouse(self) -> str:
        return f"http://{DEFAULT_HOST}:{self.clickhouse_port}"

    @property
    def http(self) -> str:
        return http_address(self.settings.http_host, self.http_port)


class BrokerProcess:
    """The broker as the supervisor sees it. Start and stop take seconds, so threads do them."""

    name = "broker"

    def __init__(self, broker: Broker, say: Callable[[str], None]) -> None:
        self._broker = broker
        self._say = say
        self._has_served = False
        self._thread: threading.Thread | None = None
        self._is_ready = False
        self._has_stopped = False
        self.error: EmbeddedError | None = None

    def start(self) -> None:
        self._is_ready = False
        self.error = None
        self._thread = threading.Thread(target=self._start, name="broker-start", daemon=True)
        self._thread.start()

    def _start(self) -> None:
        try:
            if (told := self._broker.last_words) is not None:
                self._say(told)
            # What is left of one that died: its process entry and its watcher.
            self._broker.kill()
            self._broker.start()
            self._is_ready = self._has_served = True
        except EmbeddedError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001  # a limit of the system: it is tried again
            self._fail(EmbeddedError(f"the broker cannot be started: {error!r}"))

    def _fail(self, error: EmbeddedError) -> None:
        if self._has_served:
            self._say(str(error))  # the first start's error is how the command ends
        self.error = error

    def go(self) -> None:
        """It needs nothing."""

    def exit_code(self) -> int | None:
        if self._has_stopped:
            return exit_codes.OK
        if self.error is not None:
            return exit_codes.FAILED
        if not self._is_ready:
            return None
        return self._broker.exit_code

    def is_ready(self) -> bool:
        return self._is_ready and self.exit_code() is None

    def terminate(self) -> None:
        threading.Thread(target=self._stop, name="broker-stop", daemon=True).start()

    def _stop(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self._broker.stop()
        self._has_stopped = True

    def kill(self) -> None:
        self._broker.kill()
        self._has_stopped = True


class DevStack:
    """One run of `tidemill dev`, from the checks to the last stop. Used by one thread."""

    def __init__(self, plan: DevPlan, say: Callable[[str], None], echo: Echo) -> None:
        self._plan = plan
        self._say = say
        self._lines = QuietStart(echo)
        self._supervisor = Supervisor(self._tell)
        self._workers: list[ChildProcess | ReloadedWorker] = []
        self._broker = BrokerProcess(Broker(plan.data / "kafka", plan.kafka_port), self._tell)
        self._signals = 0
        self._umask = -1  # -1: as it is; else what it was before ours

    def run(self, on_ready: Callable[[], None]) -> int:
        """Run until a signal; the exit code. `on_ready` is called when a request is served."""
        _refuse_used_ports(self._plan)
        with (
            private_umask() as self._umask,
            _held_folder(self._plan.data, self._say),
            self._signals_counted(),
        ):
            try:
                self._load_workers()
                if not self._signals:
                    self._start()
                    self._keep(on_ready)
            finally:
                self._supervisor.stop(self._plan.stop_deadlines, self._is_urgent)
        return self._supervisor.fatal_exit_code or exit_codes.OK

    def _tell(self, line: str) -> None:
        """A word of the supervisor's: of a death it comes after the last lines of the dead."""
        name, _, what = line.partition(" ")
        if what.startswith("is ready") and self._lines.is_starting and self._plan.workers > 1:
            return
        if not what.startswith("is ready"):
            self._lines.tell_kept(name)
        self._say(line)

    def _load_workers(self) -> None:
        """First of all the user's modules: what is wrong with them is said before anything starts.

        Raises DevError when a worker cannot load them.
        """
        for name, argv in _worker_roles(self._plan):
            worker = self._made_worker(name, argv)
            self._workers.append(worker)
            self._supervisor.add(worker, WORKER_STAGE)
        begun, is_slow_told = time.monotonic(), False
        while not self._signals and any(worker.loaded is None for worker in self._workers):
            for worker in self._workers:
                code = worker.exit_code()
                if code is not None:
                    worker.close()
                    raise _not_loaded(worker.name, code, self._plan.modules)
            if not is_slow_told and time.monotonic() - begun > SLOW_START_SECONDS:
                is_slow_told = True
                self._say(f"still importing {', '.join(self._plan.modules)}")
            time.sleep(LOOK_SECONDS)
        self._tell_handlers(is_ready=False)

    def _made_worker(self, name: str, argv: list[str]) -> ChildProcess | ReloadedWorker:
        # Bytecode counts as fresh by the second, and an edit may come sooner than that.
        env = {"PYTHONDONTWRITEBYTECODE": "1"} if self._plan.is_reloading else {}

        def make() -> ChildProcess:
            return ChildProcess(
                name, argv, self._plan.data / "logs" / f"{name}.log", self._lines, env,
                # Handlers are other people's code, and so are the files that they make.
                umask=self._umask, runs_user_code=True,
            )

        return ReloadedWorker(name, make, self._say) if self._plan.is_reloading else make()

    def _tell_handlers(self, *, is_ready: bool) -> None:
        told = self._workers[0].loaded if self._workers else None
        if told is not None:
            tell_handlers(told["handlers"], self._say, is_ready=is_ready)

    def _start(self) -> None:
        """The rest starts at once; the roles load while the broker does, then all are let go."""
        supervisor = self._supervisor
        supervisor.add(self._broker, BROKER_STAGE)
        for name, argv in _engine_roles(self._plan):
            log_file = self._plan.data / "logs" / f"{name}.log"
            supervisor.add(ChildProcess(name, argv, log_file, self._lines), ENGINE_STAGE)
        while not self._broker.is_ready() and not self._signals:
            # The first start is not tried again: what is in its way will still be there.
            if self._broker.error is not None:
                raise self._broker.error
            time.sleep(LOOK_SECONDS)
        if not self._signals:
            plan = self._plan
            topics = Topics(plan.settings.topic_prefix)
            topics_.apply(plan.kafka, topics, plan.settings.partitions)
            supervisor.open_gate()

    def _keep(self, on_ready: Callable[[], None]) -> None:
        begun = time.monotonic()
        is_announced = is_slow_told = False
        while not self._signals and self._supervisor.fatal_exit_code is None:
            for worker in self._workers:
                if isinstance(worker, ReloadedWorker):
                    worker.look()
            self._supervisor.look()
            unready = self._supervisor.unready
            if not unready and not is_announced:
                is_announced = True
                self._lines.is_starting = False
                on_ready()
                self._tell_handlers(is_ready=True)
            if not is_announced and not is_slow_told:
                is_slow_told = time.monotonic() - begun > SLOW_START_SECONDS
                if is_slow_told:
                    self._lines.is_starting = False
                    for name in unready:
                        self._lines.tell_kept(name)
                    self._say(f"still not ready: {', '.join(unready)}; see {self._plan.data}/logs")
            time.sleep(LOOK_SECONDS)

    def _is_urgent(self) -> bool:
        return self._signals > 1

    @contextmanager
    def _signals_counted(self) -> Iterator[None]:
        def count(number: int, _frame: object) -> None:
            self._signals += 1
            word = "stopping" if self._signals == 1 else "killing what is left"
            self._say(f"{signal.Signals(number).name}: {word}")

        numbers = [signal.SIGINT, signal.SIGTERM]
        # The terminal was closed. Under `nohup` that changes nothing.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, count) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _common_words(plan: DevPlan) -> list[str]:
    settings = plan.settings
    words = ["--kafka", plan.kafka, "--partitions", str(settings.partitions)]
    words += ["--log-format", settings.log_format, "--log-level", settings.log_level]
    if settings.topic_prefix:
        words += ["--topic-prefix", settings.topic_prefix]
    return words


def _engine_roles(plan: DevPlan) -> Iterator[tuple[str, list[str]]]:
    """Name and command line of ledger, and of sink with page."""
    settings, common = plan.settings, _common_words(plan)
    yield "ledger", role_argv("ledger", *common, "--instance-id", "dev-ledger-0")
    yield (
        "stack",
        role_argv(
            "stack", *common, "--clickhouse", f"chdb://{(plan.data / 'clickhouse').absolute()}",
            "--clickhouse-port", str(plan.clickhouse_port), "--http-host", settings.http_host,
            "--http-port", str(plan.http_port), "--instance-id", "dev-sink-0",
        ),
    )


def _worker_roles(plan: DevPlan) -> Iterator[tuple[str, list[str]]]:
    """Name and command line of each worker; none without modules."""
    if not plan.modules:
        return
    tuned = [] if plan.concurrency is None else ["--concurrency", str(plan.concurrency)]
    grace = RELOAD_GRACE_SECONDS if plan.is_reloading else plan.stop_grace_seconds
    for number in range(plan.workers):
        yield (
            "worker" if plan.workers == 1 else f"worker-{number}",
            role_argv(
                "worker", *plan.modules, *_common_words(plan), *tuned,
                "--worker-id", f"dev-worker-{number}", "--stop-grace-seconds", str(grace),
            ),
        )


def _not_loaded(name: str, code: int, modules: Sequence[str]) -> DevError:
    """For a worker that ended before it had loaded."""
    if code in exit_codes.HOPELESS:
        return DevError(f"{name} cannot load {', '.join(modules)}; nothing was started", code)
    return DevError(
        f"{name} ended {describe_exit(code)} while it imported {', '.join(modules)}; nothing was "
        "started: importing them must not end the process",
        exit_codes.MODULES,
    )


def choose_ports(plan_ports: dict[str, int]) -> dict[str, int]:
    """Free ports in place of zeros, all different."""
    taken = {port for port in plan_ports.values() if port}
    chosen = {}
    for name, port in plan_ports.items():
        while port == 0 or (plan_ports[name] == 0 and port in taken):
            port = free_port()
        taken.add(port)
        chosen[name] = port
    return chosen


def _refuse_used_ports(plan: DevPlan) -> None:
    wanted = (
        ("--kafka-port", DEFAULT_HOST, plan.kafka_port),
        ("--clickhouse-port", DEFAULT_HOST, plan.clickhouse_port),
        ("--http-port", plan.settings.http_host, plan.http_port),
    )
    for option, host, port in wanted:
        with socket.socket(family_of(host)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise DevError(
                    f"port {port} of {host} cannot be used ({os.strerror(error.errno or 0)}): "
                    f"choose another with {option}, 0 for any free one, or stop what listens there",
                    exit_codes.IN_USE,
                ) from None


@contextmanager
def _held_folder(data: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One stack a folder. The lock ends with this process, however it ends."""
    if (fault := folder_fault(data)) is not None:
        raise _unusable(data, fault)
    try:
        for left in make_data_folder(data)[:LEFT_LINES_MAX]:
            say(f"others may read what jobs say, and that cannot be changed: {left}")
        if (fault := disk_fault(data)) is not None:
            raise _unusable(data, fault)
        lock = (data / "dev.lock").open("a")
    except OSError as error:
        raise _unusable(data, error.strerror or repr(error)) from None
    _refuse_unusable_folders(data)
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DevError(
                f"another `tidemill dev` uses {data}: stop it, or choose another folder with "
                "--data",
                exit_codes.IN_USE,
            ) from None
        yield


def _unusable(data: Path, reason: str) -> DevError:
    return DevError(
        f"the folder {str(data)!r} cannot be used: {reason}; choose another with --data",
        exit_codes.CONFIG,
    )


def _refuse_unusable_folders(data: Path) -> None:
    """Each part's folder must be one that can be written, now and not after the broker's start."""
    for name in ("kafka", "clickhouse", "logs"):
        folder = data / name
        try:
            folder.mkdir(exist_ok=True)
            probe = folder / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise _unusable(folder, error.strerror or repr(error)) from None
