"""Child processes of the benchmark: where they live, how they are asked and how they end.

Owns: the cache folder, start, line protocol, freeze and end of a process group. Each
child leads a group of its own, so that ending it ends its children and nothing else. It refuses to
know what the children do.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.program import MissingError, NotMeasuredError

# Where things are installed once and kept; the variable is for machines with a small home.
CACHE_VARIABLE = "TIDEMILL_BENCH_CACHE"
CACHE_DEFAULT = Path(__file__).resolve().parent.parent / ".cache" / "benchmarks"

# How long a child may take to say that it is ready: a cold start on a busy machine.
READY_SECONDS = 60.0
# How long a child may take to end by itself before it is killed.
STOP_SECONDS = 10.0
# The longest that an install step may take: a cold download and a compile on two cores.
INSTALL_SECONDS = 900.0
# How much of a failed child's log goes into the error.
LOG_TAIL_CHARACTERS = 1_500


def cache_folder(name: str) -> Path:
    """The folder, made when absent, in which the program called `name` keeps what it installed."""
    folder = Path(os.environ.get(CACHE_VARIABLE, CACHE_DEFAULT)) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def discard(folder: Path) -> None:
    """Remove a program's data when the whole session is over.

    On ext4 without a journal, as in many virtual machines, each new file costs the more the more
    files were deleted in the last minutes: the next program would pay for this one's.
    """
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def run_step(command: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Runs an install step to its end and returns its output; raises `MissingError` on failure."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            check=True,
            text=True,
            timeout=INSTALL_SECONDS,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except FileNotFoundError as error:
        raise MissingError(f"{command[0]} is not on PATH") from error
    except subprocess.TimeoutExpired as error:
        raise MissingError(f"`{' '.join(command)}` took over {INSTALL_SECONDS:.0f} s") from error
    except subprocess.CalledProcessError as error:
        # Some tools put the reason first and their help text after it.
        reason = str(error.stdout).strip()[:LOG_TAIL_CHARACTERS]
        raise MissingError(f"`{' '.join(command)}` failed: {reason}") from error
    return done.stdout


def copy_sources(source: Path, target: Path) -> bool:
    """Copies a peer's sources to where it is built. True when the last finished install was of
    these very sources, so that nothing is to be done."""
    # What was built by another Python is built again: the peers run on the one that we run on.
    digest = hashlib.sha256(f"{sys.version} {sys.base_prefix}".encode())
    for path in sorted(source.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(source).as_posix().encode() + b"\0" + path.read_bytes())
    stamp = target / "installed"
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return True
    stamp.unlink(missing_ok=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignored)
    (target / "installing").write_text(digest.hexdigest())
    return False


def mark_installed(target: Path) -> None:
    """Notes that the install of the sources copied last is complete."""
    (target / "installing").replace(target / "installed")


class Child:
    """A process group that this benchmark started, with its log in `log`."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        talks: bool = False,
    ) -> None:
        """`talks` children have pipes for `ask`, `answer` and `finish`; others print to the log."""
        self.log = log
        self._buffer = b""
        with log.open("wb") as to_log:
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else to_log,
                stderr=to_log,
                user=user,
                group=user,
                extra_groups=[] if user else None,
            )
        self.pid = self._process.pid

    def ask(self, deadline_seconds: float, **command: Any) -> dict[str, Any]:
        """Sends one JSON line and returns the JSON line that answers it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise NotMeasuredError(self._story("has ended")) from error
        return self.answer(deadline_seconds)

    def answer(self, deadline_seconds: float) -> dict[str, Any]:
        """The next JSON line, within the deadline."""
        assert self._process.stdout is not None
        end = time.monotonic() + deadline_seconds
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise NotMeasuredError(self._story(f"gave no answer in {deadline_seconds:.0f} s"))
            part = os.read(pipe, 1 << 20)
            if not part:
                raise NotMeasuredError(self._story("has ended"))
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\n", 1)
        parsed: dict[str, Any] = json.loads(line)
        return parsed

    def freeze(self) -> None:
        """Stops the whole group where it stands (SIGSTOP)."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets a frozen group go on."""
        os.killpg(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to the whole group, at once and without a word."""
        os.killpg(self.pid, signal.SIGKILL)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def finish(self, deadline_seconds: float) -> str:
        """Waits for the process to end by itself and returns what it printed."""
        try:
            out, _ = self._process.communicate(timeout=deadline_seconds)
        except subprocess.TimeoutExpired as error:
            raise NotMeasuredError(self._story(f"ran over {deadline_seconds:.0f} s")) from error
        if self._process.returncode != 0:
            raise NotMeasuredError(self._story(f"ended with {self._process.returncode}"))
        return out.decode(errors="replace")

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> None:
        """Ends the whole group: first politely, then by SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGCONT)
            self._process.send_signal(with_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(STOP_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def log_tail(self) -> str:
        """The end of what the child has logged, for an error message."""
        return self.log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:].strip()

    def _story(self, what: str) -> str:
        tail = self.log_tail()
        return f"a process {what}" + (f"; its log ends with: {tail}" if tail else "")


def wait_until(
    condition: Callable[[], bool], deadline_seconds: float, what: str, poll_seconds: float
) -> None:
    """Polls a condition; raises `NotMeasuredError` naming `what` when the deadline has passed."""
    end = time.monotonic() + deadline_seconds
    while not condition():
        if time.monotonic() > end:
            raise NotMeasuredError(f"{what} took over {deadline_seconds:.0f} s")
        time.sleep(poll_seconds)
