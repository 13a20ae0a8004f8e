"""The jars of Kafka: what jars.json pins, and nothing else, gets onto a class path.

Owns: the cache folder, the download, the check of size and SHA-256, and that two processes may ask
at once.
Refuses to know: what the jars do, and where Maven repositories are; jgo and the user's Maven
settings know that.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import queue
import shutil
import sys
import tempfile
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from tidemill.agents.embedded.errors import JarError

Part = Literal["broker", "tools"]
Advance = Callable[[int], None]
Progress = Callable[[int], contextlib.AbstractContextManager[Advance]]

CACHE_VARIABLE = "TIDEMILL_CACHE_DIR"
# One connection is mostly waiting; more than 12 gained nothing measurable over 45 jars.
DOWNLOADS_AT_ONCE = 12
SCRATCH_PREFIX = ".part-"
# A repository that answers at all sends the next bytes well within this.
DOWNLOAD_TIMEOUT_SECONDS = 60
# A reset connection or a cut file is worth another try; a wrong address is not cured by a fourth.
DOWNLOAD_ATTEMPTS = 3
# Mirrors that a Maven settings file may declare in place of the central repository.
MIRRORS_OF_CENTRAL = frozenset({"*", "central", "external:*", "external:http:*"})


@dataclass(frozen=True, slots=True)
class Jar:
    """One pinned file: Maven coordinates, and what its bytes must be."""

    group: str
    artifact: str
    version: str
    sha256: str
    size: int

    @property
    def coordinate(self) -> str:
        """group:artifact:version, as Maven writes it."""
        return f"{self.group}:{self.artifact}:{self.version}"

    @property
    def filename(self) -> str:
        """The name of the file in every Maven repository."""
        return f"{self.artifact}-{self.version}.jar"

    @property
    def repository_path(self) -> Path:
        """Where the file lies below the root of a Maven repository."""
        return Path(*self.group.split("."), self.artifact, self.version, self.filename)

    def matches(self, path: Path) -> bool:
        """Whether the file is there, whole and byte for byte what is pinned."""
        try:
            if path.stat().st_size != self.size:
                return False
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        except FileNotFoundError:
            return False


@cache
def kafka_version() -> str:
    """The Kafka version that is pinned."""
    return str(_pins()["kafka"])


@cache
def pinned_jars(part: Part) -> tuple[Jar, ...]:
    """All jars of one part: `broker` runs alone, `tools` are the clients on top of it."""
    rows = _pins()[part]
    assert isinstance(rows, list)
    jars = []
    for row in rows:
        group, artifact, version = row["coordinate"].split(":")
        jars.append(Jar(group, artifact, version, row["sha256"], row["size"]))
    return tuple(jars)


@cache
def _pins() -> dict[str, object]:
    file = resources.files("tidemill.agents.embedded").joinpath("jars.json")
    text = file.read_text(encoding="utf-8")
    pins: dict[str, object] = json.loads(text)
    return pins


def cache_folder() -> Path:
    """Where downloads are kept: TIDEMILL_CACHE_DIR, else `tidemill` in the user's cache folder."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tidemill"


def class_path(
    parts: Sequence[Part] = ("broker",),
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> str:
    """A Java class path of verified jars; downloads only what is missing or damaged."""
    paths = ensure_jars(parts, folder=folder, progress=progress)
    return os.pathsep.join(str(path) for path in paths)


def ensure_jars(
    parts: Sequence[Part] = ("broker",),
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Path, ...]:
    """Paths of verified jars in a fixed order. Raises JarError when one cannot be had as pinned."""
    home = folder or cache_folder() / "jars"
    jars = [jar for part in parts for jar in pinned_jars(part)]
    if any(not jar.matches(home / jar.filename) for jar in jars):
        _download_missing(jars, home, progress or terminal_progress)
    return tuple(home / jar.filename for jar in jars)


def _download_missing(jars: Sequence[Jar], home: Path, progress: Progress) -> None:
    home.mkdir(parents=True, exist_ok=True)
    with _exclusive(home / ".lock"):
        # Whoever held the lock before may have brought them.
        missing = [jar for jar in jars if not jar.matches(home / jar.filename)]
        if not missing:
            return
        size = sum(jar.size for jar in missing)
        # Before the first byte, and also where no bar can be shown.
        sys.stderr.write(
            f"Kafka {kafka_version()}: {len(missing)} files, {size / 1e6:.0f} MB, are not in "
            f"{home} yet and are fetched now\n"
        )
        sys.stderr.flush()
        repositories, local = _maven_settings()
        for left in home.glob(f"{SCRATCH_PREFIX}*"):  # by somebody who was stopped in the middle
            shutil.rmtree(left, ignore_errors=True)
        with (
            tempfile.TemporaryDirectory(
                dir=home, prefix=SCRATCH_PREFIX, ignore_cleanup_errors=True
            ) as scratch,
            progress(size) as advance,
        ):
            fetch = _Fetch(home, Path(scratch), local, repositories, advance)
            _fetch_all(fetch, missing)


def _fetch_all(fetch: _Fetch, jars: Sequence[Jar]) -> None:
    """Several at once, by threads that no stop waits for: a pool's would be waited for at exit."""
    todo: queue.SimpleQueue[Jar] = queue.SimpleQueue()
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for jar in jars:
        todo.put(jar)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                jar = todo.get_nowait()
                try:
                    fetch(jar)
                except BaseException as error:  # noqa: BLE001  # raised again by who waits
                    done.put(error)
                    return
                done.put(None)

    for _ in range(min(DOWNLOADS_AT_ONCE, len(jars))):
        threading.Thread(target=work, name="tidemill-download", daemon=True).start()
    for _ in jars:
        if (error := done.get()) is not None:
            with contextlib.suppress(queue.Empty):
                while True:
                    todo.get_nowait()  # nobody goes on
            raise error


@dataclass(frozen=True, slots=True)
class _Fetch:
    """Brings one jar into the cache, from the user's local Maven repository or a remote one."""

    home: Path
    scratch: Path
    local: Path
    repositories: dict[str, str]
    advance: Advance

    def __call__(self, jar: Jar) -> None:
        known = self.local / jar.repository_path
        if jar.matches(known):
            self._keep(jar, known.read_bytes())
        else:
            self._keep(jar, self._download(jar))
        self.advance(jar.size)

    def _keep(self, jar: Jar, content: bytes) -> None:
        # The file appears whole under its name or not at all.
        part = self.scratch / jar.filename
        part.write_bytes(content)
        os.replace(part, self.home / jar.filename)

    def _download(self, jar: Jar) -> bytes:
        reason = ""
        for attempt in range(DOWNLOAD_ATTEMPTS):
            folder = self.scratch / f"{jar.artifact}-{attempt}"
            try:
                path = _resolve(jar, folder, self.repositories)
            except (OSError, RuntimeError) as error:
                # requests' exceptions are OSErrors; jgo reports "not found" as a RuntimeError.
                reason = f"{type(error).__name__}: {error}"
                continue
            if jar.matches(path):
                return path.read_bytes()
            reason = (
                f"its content is not what is pinned: {path.stat().st_size} bytes instead of "
                f"{jar.size}, or another SHA-256; it was not used"
            )
        raise JarError(
            f"cannot download {jar.coordinate}: {reason}. Check the network, or name a mirror in "
            f"~/.m2/settings.xml or jgo's configuration, or copy a filled cache into {self.home}"
        )


def _resolve(jar: Jar, folder: Path, repositories: dict[str, str]) -> Path:
    from jgo.maven import MavenContext, PythonResolver

    context = MavenContext(
        resolver=PythonResolver(),
        repo_cache=folder,
        local_repos=[],
        remote_repos=repositories or None,
        timeout=DOWNLOAD_TIMEOUT_SECONDS,
    )
    component = context.project(jar.group, jar.artifact).at_version(jar.version)
    return component.artifact().resolve()


def _maven_settings() -> tuple[dict[str, str], Path]:
    """The user's remote repositories (empty means jgo's default) and local repository."""
    try:
        from jgo.config import GlobalSettings
    except ImportError as error:
        raise JarError(
            "the embedded broker needs jgo to download Kafka: pip install 'tidemill[embedded]'"
        ) from error
    settings = GlobalSettings.load()
    repositories = dict(settings.repositories)
    if not repositories and (mirror := _mirror(Path.home() / ".m2" / "settings.xml")):
        repositories["central"] = mirror
    return repositories, settings.repo_cache


def _mirror(settings: Path) -> str | None:
    """The mirror of the central repository that a Maven settings file names, if it names one."""
    if not settings.exists():
        return None
    try:
        root = ElementTree.parse(settings).getroot()
    except ElementTree.ParseError as error:
        raise JarError(f"{settings} is not valid XML ({error}): mend it or move it away") from error
    for mirror in root.iterfind(".//{*}mirror"):
        of = {name.strip() for name in mirror.findtext("{*}mirrorOf", "").split(",")}
        if of & MIRRORS_OF_CENTRAL and (address := mirror.findtext("{*}url")):
            return address.strip().rstrip("/")
    return None


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def terminal_progress(total_bytes: int) -> Iterator[Advance]:
    """A progress bar on stderr; where that is no terminal, one line at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    label = TextColumn("{task.description}")
    columns = (label, BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        row = bar.add_task(f"Kafka {kafka_version()}", total=total_bytes)
        yield lambda size: bar.advance(row, size)
