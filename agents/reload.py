"""`tidemill dev --reload`: a worker whose code is replaced when one of its files changes.

Owns the watch over the files and the change of two processes: the new one loads beside the old one,
which ends only when the new code is known to load. Refuses to know what is in the files.

The files are polled. A worker has some dozens of its user's modules, a look at all of them takes
less than a millisecond, and it is the same on every file system, those of containers and networks
included, which tell nobody of their changes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from tidemill.agents import exit_codes
from tidemill.agents.supervisor import ChildProcess

POLL_SECONDS: Final = 0.2  # between two looks at the files
SETTLE_SECONDS: Final = 0.15  # an editor writes in several steps; nothing is loaded between them
# On a change running jobs may finish within this; then they are handed back, no attempt spent.
RELOAD_GRACE_SECONDS: Final = 1.0
KILL_SECONDS: Final = 6.0  # from the word to end to SIGKILL; a worker ends by itself long before

Stamp = tuple[int, int, int]


class FileWatch:
    """Which of some files have changed, once the changes have settled."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stamps: dict[str, Stamp | None] = {}
        self._changed: set[str] = set()
        self._changed_at = 0.0
        self._looked_at = float("-inf")

    def add(self, files: Iterable[str], since_ns: int) -> None:
        """Watch these too. One that was written after `since_ns` (Unix time) has changed."""
        for file in files:
            if file not in self._stamps:
                stamp = self._stamps[file] = _stamp(file)
                if stamp is not None and stamp[0] > since_ns:
                    self._note(file)

    def changed(self) -> list[str]:
        """What has changed since the last answer; empty while changes still come."""
        now = self._clock()
        if now - self._looked_at < POLL_SECONDS and not self._changed:
            return []
        self._looked_at = now
        for file, before in self._stamps.items():
            stamp = _stamp(file)
            if stamp != before:
                self._stamps[file] = stamp
                self._note(file)
        if not self._changed or now - self._changed_at < SETTLE_SECONDS:
            return []
        # Gone for a moment: editors write a new file and rename it into place.
        changed, self._changed = sorted(self._changed), set()
        return changed

    def _note(self, file: str) -> None:
        self._changed.add(file)
        self._changed_at = self._clock()


def _stamp(file: str) -> Stamp | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class ReloadedWorker:
    """A worker as the supervisor sees it, whichever process it is at the moment."""

    def __init__(
        self, name: str, make: Callable[[], ChildProcess], say: Callable[[str], None]
    ) -> None:
        self.name = name
        self._make = make
        self._say = say
        self._now = make()
        self._next: ChildProcess | None = None
        self._watch = FileWatch()
        self._is_open = False
        self._ending_at: float | None = None  # when the old process was told to end
        self._changed_at: float | None = None  # of a change that is not served yet
        self._started_ns = 0
        self._waits = False  # what is on the disk cannot be loaded, and nothing runs

    @property
    def pid(self) -> int | None:
        """The process that serves; None before the start."""
        return self._now.pid

    @property
    def loaded(self) -> dict[str, Any] | None:
        """What the process that serves has told of its modules."""
        return self._now.loaded

    @property
    def is_begun(self) -> bool:
        """See `ChildProcess.is_begun`."""
        return self._now.is_begun

    def start(self) -> None:
        self._started_ns = time.time_ns()
        self._waits = False
        self._now.start()

    def go(self) -> None:
        self._is_open = True
        self._now.go()

    def exit_code(self) -> int | None:
        code = self._now.exit_code()
        if code is None or self._next is not None or self._waits:
            return None
        if self._is_open and code in exit_codes.HOPELESS and not self._now.is_begun:
            self._waits = True
            self._watch.add(self._now.failed_files, self._started_ns)
            self._say(f"{self.name} cannot load its modules; it waits for a change of theirs")
            return None
        return code

    def is_ready(self) -> bool:
        return self._now.is_ready()

    def terminate(self) -> None:
        self._drop_next()
        self._waits = False
        self._now.terminate()

    def kill(self) -> None:
        self._drop_next()
        self._waits = False
        self._now.kill()

    def close(self) -> None:
        """After its end: see `ChildProcess.close`."""
        self._now.close()

    def close_log(self) -> None:
        """When it will not be started again."""
        self._now.close_log()

    def look(self) -> None:
        """Begin or go on with a change of processes. Called again and again by one thread."""
        told = self._now.loaded
        if told is not None:
            self._watch.add(_files(told), self._started_ns)
        changed = self._watch.changed() if self._is_open else []
        if changed and self._ending_at is None:
            self._begin(changed)
        if self._next is not None:
            self._go_on(self._next)
        elif self._changed_at is not None and self._now.is_ready():
            seconds = time.monotonic() - self._changed_at
            self._changed_at = None
            self._say(f"{self.name} runs the new code ({seconds:.1f} s)")

    def _begin(self, changed: list[str]) -> None:
        self._drop_next()
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        self._say(f"{_short(changed[0])}{others} changed: loading it")
        self._changed_at = time.monotonic()
        self._started_ns = time.time_ns()
        self._next = self._make()
        self._next.start()

    def _go_on(self, new: ChildProcess) -> None:
        if new.loaded is None:
            if new.exit_code() is not None:
                self._stay()
            return
        if self._ending_at is None:
            self._ending_at = time.monotonic()
            self._now.terminate()
        if self._now.exit_code() is None:
            if time.monotonic() - self._ending_at > KILL_SECONDS:
                self._now.kill()
            return
        self._now.close()
        self._now.close_log()
        self._now, self._next, self._ending_at, self._waits = new, None, None, False
        new.go()

    def _stay(self) -> None:
        """The new code cannot be loaded; its trace has been shown."""
        new, self._next, self._changed_at = self._next, None, None
        assert new is not None
        new.close()
        new.close_log()
        self._watch.add(new.failed_files, self._started_ns)
        goes_on = self._now.exit_code() is None
        self._waits = not goes_on
        state = "goes on with the code that it has" if goes_on else "waits"
        self._say(f"{self.name} {state}; mend the file, and it is loaded again")

    def _drop_next(self) -> None:
        if self._next is not None:
            self._next.kill()
            self._next.close()
            self._next.close_log()
            self._next = None
            self._ending_at = None


def _files(told: dict[str, Any]) -> list[str]:
    files = told.get("files")
    return [str(file) for file in files] if isinstance(files, list) else []


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
