"""Processes kept alive: start, readiness, restart with a backoff, an ordered stop.

Owns the children of one supervisor: their start, their lines, when each is ready, what happens
when one dies, and that none outlives the supervisor. Refuses to know what a role does.

A child is told apart from a stranger's process by `TIDEMILL_SUPERVISED`. It loads its code, then
waits for a line on stdin before it begins, so that loading costs no time once the broker is there;
when stdin ends, its supervisor has died and it dies too.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol, runtime_checkable

from tidemill.agents import exit_codes, own_streams
from tidemill.agents.line_files import LineFile
from tidemill.agents.logging import (
    LOAD_FAILED_EVENT,
    LOADED_EVENT,
    READY_EVENT,
    REFUSED_EVENT,
    announce_ready,
)
from tidemill.agents.plain_text import plain

logger = logging.getLogger("tidemill.supervisor")

# Quick at first. A job that ends its worker is known after four deaths, and what ran beside it has
# to end within fifteen seconds of the first; a role that cannot live is slowed down after that.
BACKOFF_SECONDS: Final = (0.2, 0.2, 0.5, 0.5, 1.0, 2.0, 5.0)
# A role that served before it died: jobs beside the one that ended it wait for its return.
SERVED_BACKOFF_SECONDS_MAX: Final = 0.5
# A child that lived this long starts again at the first backoff: longer than what dies at its start
# lives, and short, so that kills that come one after another do not add up to seconds without it.
HEALTHY_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 0.05  # between two looks at the children
SLOW_START_SECONDS: Final = 30.0  # then a line says who is not ready
KILL_AFTER_SECONDS: Final = 3.0  # past the grace of a role that does not end
# A role that ends at each start before it has served once will not serve: a damaged folder, a full
# disk, a library that does not fit. After this many starts it ends all, with its code.
FAILED_STARTS_MAX: Final = 5
SUPERVISED: Final = "TIDEMILL_SUPERVISED"
FORMER_END: Final = "TIDEMILL_FORMER_END"  # tells a process how the one before it ended
GO: Final = "go\n"
_PR_SET_PDEATHSIG: Final = 1  # prctl(2)

Echo = Callable[[str, str], None]
"""Shows a line of a child: name, text without line end."""


class Process(Protocol):
    """What a supervisor keeps alive."""

    name: str

    def start(self) -> None:
        """Begin; returns at once."""

    def go(self) -> None:
        """Let it serve: what it needs is there."""

    def exit_code(self) -> int | None:
        """None while it lives; negative: the signal that ended it."""

    def is_ready(self) -> bool:
        """Whether it serves."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it now, with its own children."""


@runtime_checkable
class HasPipes(Protocol):
    """What holds pipes and a log file of its process."""

    def close(self) -> None:
        """After an end: let go of the pipes."""

    def close_log(self) -> None:
        """When it will not be started again."""


class ChildProcess:
    """A role in a process group of its own, its lines going to `echo` and, if given, to a file.

    `runs_user_code`: a handler may end the process with any code, so that a code alone says little.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log_file: Path | None,
        echo: Echo,
        env: Mapping[str, str] | None = None,
        *,
        umask: int = -1,
        runs_user_code: bool = False,
    ) -> None:
        self.name = name
        self._umask = umask  # -1: that of this process
        self._runs_user_code = runs_user_code
        self.loaded: dict[str, Any] | None = None
        """What a worker has told of its modules: `handlers`, `files`; None before that."""
        self.failed_files: list[str] = []
        """The files of a user's modules when those could not be loaded."""
        self._is_refused = False
        self._argv = list(argv)
        self._env = {**os.environ, **(env or {}), SUPERVISED: "1", "PYTHONUNBUFFERED": "1"}
        self._echo = echo
        self._log = None if log_file is None else LineFile(
            log_file, lambda told: echo("tidemill", told)
        )
        self._process: subprocess.Popen[str] | None = None
        self._former_end: str | None = None
        self._is_ready = False
        self._readers: list[threading.Thread] = []

    @property
    def pid(self) -> int | None:
        """Its process id; None before the start."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        self._is_ready = self._is_refused = False
        self.loaded, self.failed_files = None, []
        told = {} if self._former_end is None else {FORMER_END: self._former_end}
        self._process = subprocess.Popen(
            self._argv,
            env={**self._env, **told},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",  # `tidemill.cli.streams` has roles write it, whatever the locale
            errors="replace",
            umask=self._umask,
            # The terminal's Ctrl-C is for the supervisor, which stops the roles in order.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            self._reader(self._process.stdout, self._take_stdout),
            self._reader(self._process.stderr, self._take_line),
        ]

    def go(self) -> None:
        process = self._process
        if process is None or process.stdin is None:
            return
        try:
            process.stdin.write(GO)
            process.stdin.flush()
        except (BrokenPipeError, ValueError):
            # It died meanwhile; the next look finds its exit code.
            logger.debug("%s was gone before it could begin", self.name)

    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def is_ready(self) -> bool:
        return self._is_ready and self.exit_code() is None

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """Remember how it ended, take its last lines and let go of the pipes."""
        code = self.exit_code()
        self._former_end = None if code is None else _former_end(code)
        # Processes that the child left behind may hold the pipes; they are of its group.
        self._signal(signal.SIGKILL)
        for reader in self._readers:
            reader.join(timeout=1.0)
        if self._process is not None and self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                logger.debug("%s closed its stdin first", self.name)

    def close_log(self) -> None:
        """When it will not be started again."""
        if self._log is not None:
            self._log.close()

    def _signal(self, number: int) -> None:
        if self._process is None:
            return
        try:
            # Its group: a worker's process handlers go with it. The group exists while any
            # member does, and no stranger can get its number before.
            if number == signal.SIGKILL:
                os.killpg(self._process.pid, number)
            elif self._process.poll() is None:
                os.kill(self._process.pid, number)
        except ProcessLookupError:
            logger.debug("%s had ended already", self.name)

    def _reader(self, stream: IO[str], take: Callable[[str], None]) -> threading.Thread:
        def run() -> None:
            with stream:
                for line in stream:
                    take(line.rstrip("\n"))

        thread = threading.Thread(target=run, name=f"lines-of-{self.name}", daemon=True)
        thread.start()
        return thread

    def _take_stdout(self, line: str) -> None:
        if not (line.startswith("{") and self._take_word(line)):
            self._take_line(line)

    def _take_word(self, line: str) -> bool:
        """Whether the line is a word of the role for its supervisor."""
        try:
            told = json.loads(line)
        except json.JSONDecodeError:
            return False
        event = told.get("event")
        if event == READY_EVENT:
            self._is_ready = True
        elif event == LOADED_EVENT:
            self.loaded = told
        elif event == LOAD_FAILED_EVENT:
            self.failed_files = [str(file) for file in told.get("files", ())]
        elif event == REFUSED_EVENT:
            self._is_refused = True
        else:
            return False
        return True

    @property
    def is_begun(self) -> bool:
        """Whether its code was loaded and allowed: what ends it then may be a job."""
        return self._runs_user_code and self.loaded is not None and not self._is_refused

    def _take_line(self, line: str) -> None:
        # Handlers print what they like, and a log file is read in a terminal too.
        line = plain(line, "\t")
        if self._log is not None:
            self._log.write(line)
        self._echo(self.name, line)


@dataclass(slots=True)
class Kept:
    """A process and what is known of its life."""

    process: Process
    stage: int
    started_at: float = 0.0
    deaths: int = 0
    failed_starts: int = 0
    """Deaths of its own doing before it could begin, in a row."""
    restart_at: float | None = None
    has_been_ready: bool = False
    is_told: bool = False


class Supervisor:
    """Keeps processes alive until it is told to stop. All of its methods run in one thread.

    `stage` orders the stop: the lowest stage ends first.
    """

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._kept: list[Kept] = []
        self._say = on_line
        self._is_open = False
        self.fatal_exit_code: int | None = None

    def add(self, process: Process, stage: int) -> None:
        """Keep this process too; it is started at once."""
        kept = Kept(process, stage)
        self._kept.append(kept)
        self._start(kept)

    def open_gate(self) -> None:
        """What the children need is there: let them begin, and those that start later at once."""
        self._is_open = True
        for kept in self._kept:
            kept.process.go()

    @property
    def unready(self) -> list[str]:
        """Names of processes that do not serve yet."""
        return [kept.process.name for kept in self._kept if not kept.process.is_ready()]

    def look(self) -> None:
        """Find the dead, start again whose time has come."""
        now = time.monotonic()
        for kept in self._kept:
            if kept.restart_at is not None:
                if now >= kept.restart_at:
                    self._start(kept)
                continue
            code = kept.process.exit_code()
            if code is not None:
                self._take_end(kept, code, now)
            elif kept.process.is_ready():
                self._note_ready(kept, now)
                if kept.deaths and now - kept.started_at > HEALTHY_SECONDS:
                    kept.deaths = 0

    def _note_ready(self, kept: Kept, now: float) -> None:
        kept.has_been_ready = True
        kept.failed_starts = 0
        if not kept.is_told:
            kept.is_told = True
            self._say(f"{kept.process.name} is ready ({now - kept.started_at:.1f} s)")

    def _start(self, kept: Kept) -> None:
        kept.is_told = False
        kept.restart_at = None
        kept.started_at = time.monotonic()
        kept.process.start()
        if self._is_open:
            kept.process.go()

    def _take_end(self, kept: Kept, code: int, now: float) -> None:
        name = kept.process.name
        if isinstance(kept.process, HasPipes):
            kept.process.close()
        is_begun = getattr(kept.process, "is_begun", False)
        if code in exit_codes.HOPELESS and not is_begun:
            self._give_up(kept, code, "cannot run as it is set up; see its lines above")
            return
        if not (is_begun or kept.has_been_ready or code <= 0 or code in exit_codes.PASSING):
            kept.failed_starts += 1
            if kept.failed_starts == FAILED_STARTS_MAX:
                said = f"ended {describe_exit(code)} at each of {FAILED_STARTS_MAX} starts"
                self._give_up(kept, code, f"{said}, so this does not pass; see its lines above")
                return
        if code == exit_codes.RECYCLED:
            self._say(f"{name} asks for a fresh start; starting it again")
            kept.restart_at = now
            return
        delay = BACKOFF_SECONDS[min(kept.deaths, len(BACKOFF_SECONDS) - 1)]
        if kept.is_told:
            delay = min(delay, SERVED_BACKOFF_SECONDS_MAX)
        kept.deaths += 1
        kept.restart_at = now + delay
        lived = now - kept.started_at
        self._say(
            f"{name} ended {describe_exit(code)} after {lived:.1f} s; "
            f"starting it again in {delay:g} s (death {kept.deaths})"
        )

    def _give_up(self, kept: Kept, code: int, why: str) -> None:
        self._say(f"{kept.process.name} {why}")
        self.fatal_exit_code = code
        kept.restart_at = float("inf")

    def stop(self, deadlines: Mapping[int, float], is_urgent: Callable[[], bool]) -> None:
        """End all, stage by stage. `deadlines`: stage -> seconds from now until it is killed.

        `is_urgent` turning true kills what is left at once.
        """
        begun = time.monotonic()
        for stage in sorted({kept.stage for kept in self._kept}):
            living = [kept for kept in self._kept if kept.stage == stage and _lives(kept)]
            for kept in living:
                kept.process.terminate()
            deadline = begun + deadlines[stage]
            while any(map(_lives, living)) and time.monotonic() < deadline and not is_urgent():
                time.sleep(LOOK_SECONDS)
            for kept in filter(_lives, living):
                self._say(f"{kept.process.name} did not end in time; killing it")
                kept.process.kill()
            for kept in self._kept:
                if kept.stage == stage:
                    self._close(kept)

    def _close(self, kept: Kept) -> None:
        while _lives(kept):
            time.sleep(LOOK_SECONDS)
        if isinstance(kept.process, HasPipes):
            kept.process.close()
            kept.process.close_log()


def _lives(kept: Kept) -> bool:
    return kept.restart_at is None and kept.process.exit_code() is None


def describe_exit(code: int) -> str:
    """An exit code in words: "by SIGKILL", "with exit code 3"."""
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"


def former_end_told() -> str | None:
    """In a role's process: how the process before it ended, when its supervisor knows. What is
    started from here need not know."""
    return os.environ.pop(FORMER_END, None) or None


def _former_end(code: int) -> str:
    return f"its worker ended {describe_exit(code)}" + (f" (signal {-code})" if code < 0 else "")


def role_argv(*words: str) -> list[str]:
    """The command line of a role in this very installation."""
    # The working folder is for users' modules: a file of theirs called like one of Python's or ours
    # must not come before it. Unless this very installation is what stands in the folder.
    home = Path(__file__).parents[2].resolve()
    safe = [] if home == Path.cwd() else ["-P"]
    return [sys.executable, *safe, "-m", "tidemill", *words]


def is_supervised() -> bool:
    """Whether this process is a role that a supervisor of ours has started."""
    return SUPERVISED in os.environ


def wait_for_go() -> None:
    """In a role's process: when supervised, tie it to its supervisor and wait for its word."""
    if os.environ.pop(SUPERVISED, None) is None:
        return
    if own_streams.words().readline() != GO:
        os._exit(exit_codes.FAILED)
    threading.Thread(target=_die_with_supervisor, name="supervisor-watch", daemon=True).start()


def tie_to_supervisor() -> None:
    """First thing in a role's process: the kernel shall end it with its supervisor, where it can.

    `wait_for_go` does the same by the end of stdin, on every system, from then on.
    """
    if SUPERVISED not in os.environ or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        logger.debug("prctl: %s", os.strerror(ctypes.get_errno()))


def _die_with_supervisor() -> None:
    while own_streams.words().readline():
        pass
    os._exit(exit_codes.FAILED)


def keep_instances(
    commands: Mapping[str, Sequence[str]],
    grace_seconds: float,
    say: Callable[[str], None],
    echo: Echo,
) -> int:
    """Keep processes of one kind alive until a signal; readiness is told when all are ready."""
    supervisor = Supervisor(say)
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: signals.append(received))
    for name, argv in commands.items():
        supervisor.add(ChildProcess(name, argv, None, echo, runs_user_code=True), 0)
    supervisor.open_gate()
    is_announced = False
    while not signals and supervisor.fatal_exit_code is None:
        supervisor.look()
        if not is_announced and not supervisor.unready:
            is_announced = True
            announce_ready("worker", instances=len(commands))
        time.sleep(LOOK_SECONDS)
    supervisor.stop({0: grace_seconds + KILL_AFTER_SECONDS}, lambda: len(signals) > 1)
    return supervisor.fatal_exit_code or exit_codes.OK
