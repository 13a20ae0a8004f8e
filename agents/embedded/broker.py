"""One real Kafka broker as a child process: format, start, ready, stop, kill, start again.

Owns: the broker's process, its data folder and the lock on it, and the moment when it is ready.
Refuses to know: topics and jobs; how jars and a Java are found (jars.py, java.py); what Kafka is
told (kafka_settings.py).

The lock on the folder is an open file that the broker's process inherits: it is held exactly as
long as that process lives, whoever started it and however it ends.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tidemill.agents.embedded.broken_start import end_told, start_error
from tidemill.agents.embedded.errors import (
    DamagedFolderError,
    EmbeddedError,
    FolderInUseError,
    PortInUseError,
    StartError,
)
from tidemill.agents.embedded.jars import class_path
from tidemill.agents.embedded.java import find_java
from tidemill.agents.embedded.kafka_settings import (
    DEFAULT_HEAP_MB,
    DEFAULT_PORT,
    HEAP_MB_MIN,
    LOG_CONFIGURATION,
    LOOPBACK,
    jvm_options,
    log_properties,
    server_properties,
)
from tidemill.agents.embedded.ports import free_port
from tidemill.agents.plain_text import plain
from tidemill.agents.private_files import (
    FILE_MODE,
    FOLDER_MODE,
    PRIVATE_UMASK,
    folder_fault,
    make_private,
)
from tidemill.agents.supervisor import describe_exit

# Ready takes 3 s on an idle machine; a busy one, or a long log check after a kill, takes many times
# that.
START_TIMEOUT_SECONDS = 90.0
FORMAT_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 10.0
# A predecessor that lost its parent is given this long to end before the folder counts as taken.
LOCK_PATIENCE_SECONDS = 8.0
POLL_SECONDS = 0.05
FORMAT_OUTPUT_LENGTH_MAX = 600  # characters that are shown of a set-up that failed
SETTINGS_FILE = "server.properties"
UTF8_LOCALE = "C.UTF-8"
# Ends the broker when the pipe that only the parent holds is closed. The kernel's parent-death
# signal exists on Linux only, and fires already when the thread that started the broker ends.
WATCHER = """
while read -r line; do :; done
kill -TERM "$1" 2>/dev/null
for second in 1 2 3 4 5 6 7 8 9 10; do
  kill -0 "$1" 2>/dev/null || exit 0
  sleep 1
done
kill -KILL "$1" 2>/dev/null
"""


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """What is known of a folder's broker. `pid` and `port` are None when none is running."""

    data_dir: Path
    is_running: bool
    is_ready: bool
    pid: int | None
    port: int | None

    @property
    def bootstrap(self) -> str | None:
        """host:port for clients; None when none is running."""
        return None if self.port is None else f"{LOOPBACK}:{self.port}"


class Broker:
    """A one-node Kafka in `data_dir`, listening on loopback.

    `controller_port` 0 picks a free one. With `is_tied` the broker ends when this process ends,
    however it ends; without it the broker stays. An instance may be started again after `stop` or
    `kill`.
    """

    def __init__(
        self,
        data_dir: Path | str,
        port: int = DEFAULT_PORT,
        controller_port: int = 0,
        heap_mb: int = DEFAULT_HEAP_MB,
        *,
        is_tied: bool = True,
    ) -> None:
        if heap_mb < HEAP_MB_MIN:
            raise EmbeddedError(f"heap_mb is {heap_mb}: Kafka needs at least {HEAP_MB_MIN}")
        self.data_dir = Path(data_dir).expanduser().absolute()
        self.port = port
        self.controller_port = controller_port
        self.heap_mb = heap_mb
        self.is_tied = is_tied
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._has_served = False
        self._log_begin = 0  # how long its log was before its last start

    @property
    def bootstrap(self) -> str:
        """host:port for clients."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The broker's process id; None when it was not started from here or has been stopped."""
        return None if self._process is None else self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process that was started from here still runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How the process that was started from here ended, negative: by a signal; else None."""
        return None if self._process is None else self._process.poll()

    @property
    def last_words(self) -> str | None:
        """How it ended after it had served, with what its log says; None while it lives."""
        code = self.exit_code
        if code is None or not self._has_served:
            return None
        return end_told(self.data_dir, code, self._log_begin)

    @property
    def log_file(self) -> Path:
        """The broker's own log."""
        return self.data_dir / "logs" / "broker.log"

    def start(self, timeout: float = START_TIMEOUT_SECONDS) -> None:
        """Start, and return when a client is served; an EmbeddedError says what is in the way."""
        if self.is_alive:
            raise EmbeddedError(f"this broker runs already, as process {self.pid}")
        if (fault := folder_fault(self.data_dir)) is not None:
            raise EmbeddedError(f"the folder {self.data_dir!a} cannot be used: {fault}")
        with _named_files(self.data_dir):
            self._start(timeout)

    def _start(self, timeout: float) -> None:
        make_private(self.data_dir, marks=("broker.lock",))
        (self.data_dir / "logs").mkdir(mode=FOLDER_MODE, exist_ok=True)
        with _folder_lock(self.data_dir) as lock:
            jars = class_path()
            java = os.path.abspath(find_java().path)
            _refuse_used_port(self.port)
            self._write_settings()
            if not (self.data_dir / "data" / "meta.properties").exists():
                _refuse_headless(self.data_dir / "data")
                self._format(java, jars)
            self._log_begin = self.log_file.stat().st_size if self.log_file.exists() else 0
            self._has_served = False
            try:
                self._spawn([java, *self._jvm_options(), "-cp", jars, "kafka.Kafka"], lock)
                self._wait_ready(timeout)
            except BaseException:
                self.kill()
                raise
            self._has_served = True

    def stop(self, timeout: float = STOP_TIMEOUT_SECONDS) -> bool:
        """Ask it to end and wait; kill it when it takes longer. True when it ended by itself."""
        process = self._process
        if process is None:
            return True
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        self._forget()
        return True

    def kill(self) -> None:
        """End it at once, as a crash would. What it acknowledged is in the folder."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._forget()

    def _forget(self) -> None:
        self._process = None
        (self.data_dir / "broker.json").unlink(missing_ok=True)
        if self._watcher is not None:
            with contextlib.suppress(ProcessLookupError):
                # The whole group: the shell and its `sleep`.
                os.killpg(self._watcher.pid, signal.SIGKILL)
            self._watcher.wait()
            assert self._watcher.stdin is not None
            self._watcher.stdin.close()
            self._watcher = None

    def _write_settings(self) -> None:
        text = server_properties(
            port=self.port, controller_port=self.controller_port or free_port()
        )
        for name, content in ((SETTINGS_FILE, text), (LOG_CONFIGURATION, log_properties())):
            path = self.data_dir / name
            path.write_text(content, encoding="utf-8")
            path.chmod(FILE_MODE)

    def _jvm_options(self) -> list[str]:
        return jvm_options(heap_mb=self.heap_mb)

    def _environment(self) -> dict[str, str]:
        # Java names files in the encoding of the locale; under LANG=C that would be ASCII.
        needs = not str(self.data_dir).isascii() and sys.platform.startswith("linux")
        return {**os.environ, "LC_ALL": UTF8_LOCALE} if needs else {**os.environ}

    def _format(self, java: str, jars: str) -> None:
        # A folder without this file was never formatted, or not to the end.
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        command = [java, *self._jvm_options(), "-cp", jars, "kafka.tools.StorageTool", "format"]
        # The id stands in one argument with its option: it may begin with a dash.
        command += [f"--cluster-id={cluster}", "--config", SETTINGS_FILE]
        command.append("--ignore-formatted")
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False,
                timeout=FORMAT_TIMEOUT_SECONDS, cwd=self.data_dir, env=self._environment(),
                umask=PRIVATE_UMASK,
            )
        except subprocess.TimeoutExpired:
            raise StartError(
                f"{java} did not set up {self.data_dir} within {FORMAT_TIMEOUT_SECONDS:.0f} s: is "
                "it a Java? Name another by JAVA_HOME"
            ) from None
        if done.returncode != 0:
            said = plain(f"{done.stdout}{done.stderr}".strip())[:FORMAT_OUTPUT_LENGTH_MAX]
            way_out = "" if done.returncode > 0 else "; give it memory: it takes about 600 MB"
            raise StartError(
                f"{java} cannot set up {self.data_dir}: it ended "
                f"{describe_exit(done.returncode)}{': ' + said if said else ''}{way_out}"
            )

    def _spawn(self, command: list[str], lock: IO[str]) -> None:
        with (self.data_dir / "logs" / "broker.out").open("wb") as output:
            os.fchmod(output.fileno(), FILE_MODE)
            self._process = subprocess.Popen(
                [*command, SETTINGS_FILE],
                # All of its paths are relative: no name of a folder can be misread on the way.
                cwd=self.data_dir,
                env=self._environment(),
                umask=PRIVATE_UMASK,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A session of its own: the terminal's Ctrl-C is not for the broker.
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )
        if self.is_tied:
            self._watcher = subprocess.Popen(
                ["/bin/sh", "-c", WATCHER, "tidemill-broker-watcher", str(self._process.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # It needs `sleep`, wherever the caller's own PATH points.
                env={"PATH": os.defpath},
                start_new_session=True,
            )
        record = json.dumps({"pid": self._process.pid, "port": self.port})
        (self.data_dir / "broker.json").write_text(record, encoding="utf-8")
        (self.data_dir / "broker.json").chmod(FILE_MODE)

    def _wait_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not is_serving(self.port):
            if not self.is_alive or time.monotonic() > deadline:
                raise start_error(
                    self.data_dir, exit_code=self.exit_code, log_begin=self._log_begin,
                    waited_seconds=timeout,
                )
            time.sleep(POLL_SECONDS)


def start_background(
    data_dir: Path | str, port: int = DEFAULT_PORT, heap_mb: int = DEFAULT_HEAP_MB
) -> int:
    """Start a broker that outlives this process, and return its process id when it is ready."""
    broker = Broker(data_dir, port, heap_mb=heap_mb, is_tied=False)
    broker.start()
    assert broker._process is not None
    _DETACHED.append(broker._process)
    return broker._process.pid


# Children that are left alone on purpose; held, because Popen warns about a live one that nobody
# holds.
_DETACHED: list[subprocess.Popen[bytes]] = []


def stop_background(data_dir: Path | str, timeout: float = STOP_TIMEOUT_SECONDS) -> bool:
    """Stop the broker of this folder, whoever started it. False when it had to be killed."""
    current = status(data_dir)
    if current.pid is None:
        return True
    folder = current.data_dir
    os.kill(current.pid, signal.SIGTERM)
    is_clean = _wait_free(folder, timeout)
    if not is_clean:
        os.kill(current.pid, signal.SIGKILL)
        if not _wait_free(folder, timeout):
            raise EmbeddedError(f"process {current.pid} holds {folder} and cannot be ended")
    (folder / "broker.json").unlink(missing_ok=True)
    return is_clean


def status(data_dir: Path | str) -> BrokerStatus:
    """What runs in this folder. Asks the folder's lock, so that a stale record is not believed."""
    folder = Path(data_dir).expanduser().absolute()
    record = _record(folder) if _is_locked(folder) else {}
    pid, port = record.get("pid"), record.get("port")
    return BrokerStatus(
        data_dir=folder,
        is_running=pid is not None,
        is_ready=port is not None and is_serving(port),
        pid=pid,
        port=port,
    )


def is_serving(port: int) -> bool:
    """Whether a broker on this port of loopback answers a client's metadata request."""
    # The plain connection first: librdkafka would retry and log for each refusal.
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    settings: dict[str, Any] = {"bootstrap.servers": f"{LOOPBACK}:{port}", "log_level": 0}
    try:
        return bool(AdminClient(settings).list_topics(timeout=2).brokers)
    except KafkaException:
        return False


def _refuse_used_port(port: int) -> None:
    with socket.socket() as probe:
        # Connections of a predecessor that linger in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise PortInUseError(
                f"port {port} of {LOOPBACK} cannot be used ({error.strerror}): "
                "choose another with --kafka-port, or stop what listens there"
            ) from error


@contextlib.contextmanager
def _named_files(folder: Path) -> Iterator[None]:
    """What the system refuses is told with the file's name, the reason and the way out."""
    try:
        yield
    except OSError as error:
        raise EmbeddedError(
            f"the broker's folder cannot be used: {error.filename or folder}: "
            f"{error.strerror or error}; mend that, or choose another folder with --data"
        ) from error


def _refuse_headless(data: Path) -> None:
    """Formatting what has been used would give the broker another name than its records have."""
    used = [entry for entry in data.glob("*-*") if entry.is_dir()] if data.is_dir() else []
    if used:
        raise DamagedFolderError(
            f"{data / 'meta.properties'} is missing, and {len(used)} partitions are there: put "
            "the file back from a copy, or choose another folder with --data"
        )


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[IO[str]]:
    with (folder / "broker.lock").open("a") as file:
        os.fchmod(file.fileno(), FILE_MODE)
        deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise FolderInUseError(
                    f"{folder} is in use by a live broker (process {_record(folder).get('pid')}): "
                    f"stop it with `tidemill broker stop --data {folder}`, "
                    "or choose another folder with --data"
                )
            time.sleep(POLL_SECONDS)
        yield file


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(folder: Path) -> bool:
    try:
        with (folder / "broker.lock").open() as file:
            return not _try_lock(file)
    except FileNotFoundError:
        return False


def _wait_free(folder: Path, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while _is_locked(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _record(folder: Path) -> dict[str, int]:
    try:
        record: dict[str, int] = json.loads((folder / "broker.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return record
