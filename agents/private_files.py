"""Files of ours that only their owner may read: what is in them came from users.

Owns the modes of data folders and of what is in them, and which names a folder may have. Refuses to
know what the files are.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600
OTHERS: Final = 0o077  # the bits of group and others
STACK_ENTRIES: Final = ("dev.lock", "kafka", "clickhouse", "logs")
PRIVATE_UMASK: Final = 0o077  # of processes that write nothing but files of ours
DISK_BYTES_MIN: Final = 64 * 1_048_576  # Kafka ends itself at a full disk: a start needs some room
PATH_BYTES_MAX: Final = 3_500  # bytes; the system's bound is 4,096, and files lie deep below


def make_data_folder(data: Path) -> list[str]:
    """`make_private` for the folder of the embedded stack."""
    return make_private(data, marks=STACK_ENTRIES, ours=STACK_ENTRIES)


def make_private(
    folder: Path, *, marks: Collection[str], ours: Collection[str] | None = None
) -> list[str]:
    """Make the folder, and take from others what they may do with it and with what is in it.

    A folder that has been there is ours when it is empty or has an entry of `marks`. Any other,
    such as a home or a project, keeps its mode; then only the entries `ours` are mended, which by
    default are all entries of a folder that is ours. Returns what could not be mended, such as
    files of another owner. Raises OSError when the folder cannot be made.
    """
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    top = folder.resolve()
    found = {entry.name for entry in top.iterdir()}
    is_ours = not found or not found.isdisjoint(marks)
    left = _mend(top) if is_ours and not top.stat().st_mode & stat.S_ISVTX else []
    mended = (found if is_ours else set()) if ours is None else found & set(ours)
    for name in mended:
        left += _mend(top / name)
        for where, folders, files in os.walk(top / name):
            for inner in (*folders, *files):
                left += _mend(Path(where, inner))
    return left


def _mend(path: Path) -> list[str]:
    try:
        found = path.lstat().st_mode  # what a link leads to is not ours
        mode = FOLDER_MODE if stat.S_ISDIR(found) else FILE_MODE
        if (stat.S_ISREG(found) or stat.S_ISDIR(found)) and found & OTHERS:
            path.chmod(stat.S_IMODE(found) & mode)
    except FileNotFoundError:
        return []  # it went meanwhile
    except OSError as error:
        return [f"{path}: {error.strerror}"]
    return []


@contextmanager
def private_umask() -> Iterator[int]:
    """Files that this process makes meanwhile are its owner's alone; yields the umask before."""
    before = os.umask(PRIVATE_UMASK)
    try:
        yield before
    finally:
        os.umask(before)


def folder_fault(folder: Path) -> str | None:
    """Why no data can be kept in a folder of this name; None when it can."""
    whole = folder.expanduser().absolute()
    try:
        text = str(whole).encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8, which the broker cannot read"
    if len(text) > PATH_BYTES_MAX:
        return f"its path has {len(text)} bytes, and {PATH_BYTES_MAX} are the most"
    try:
        return None if stat.S_ISDIR(whole.stat().st_mode) else "it is no folder"
    except FileNotFoundError:
        return None  # it will be made
    except OSError as error:
        return error.strerror or repr(error)


def disk_fault(folder: Path) -> str | None:
    """Why the disk of a folder that exists takes no data; None when there is room."""
    usage = os.statvfs(folder)
    left = usage.f_bavail * usage.f_frsize
    if left >= DISK_BYTES_MIN:
        return None
    return (
        f"its disk has {left / 1_048_576:.0f} MB left, and {DISK_BYTES_MIN // 1_048_576} MB are "
        "the least; free some space"
    )
