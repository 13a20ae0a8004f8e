"""Why a broker ended while it started, in one line with the way out.

Owns the reading of what Kafka and Java said, and what to do about the usual reasons. Refuses to
know how a broker is started.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from tidemill.agents.embedded.errors import DamagedFolderError, StartError
from tidemill.agents.private_files import disk_fault
from tidemill.agents.supervisor import describe_exit

CAUSE_LENGTH_MAX: Final = 400  # characters of what Kafka says
LOG_BYTES_READ_MAX: Final = 1_048_576  # of a log's end: one start writes a tenth of it
_FAILURE: Final = re.compile(r"^\S+ \S+ (?:ERROR|FATAL) (.*?)(?: \(\w+\$?\))?$")
_EXCEPTION: Final = re.compile(r"^(?:Caused by: )?((?:[a-z]\w*\.)+\w+(?:Exception|Error)\b.*)$")
_PACKAGES: Final = re.compile(r"^(?:[a-z]\w*\.)+")
_OTHER_FOLDER: Final = (
    "the folder is damaged, or another Kafka wrote it: put back a copy of it, or choose another "
    "with --data"
)
# What is found in the cause -> the way out, the first that fits.
_WAYS_OUT: Final = (
    (r"No space left|disk quota", "free some space on the disk of the folder"),
    (r"File too large", "a limit on the size of files is set: ulimit -f unlimited"),
    (r"Too many open files", "raise the limit of open files: ulimit -n 4096"),
    (r"object heap|nsufficient memory|Cannot allocate|OutOfMemory|unable to create native thread|"
     r"SIGKILL", "give it memory: it takes about 600 MB"),
    (r"Permission denied|AccessDenied|Read-only", "the folder must be its user's, and writable"),
    (r"bind|already in use", "stop what listens on the port, or choose another"),
    (r"metadata\.version|feature level|UnsupportedVersion|No MetadataVersion|newer",
     "a newer Kafka wrote the folder: start it with the Tidemill that wrote it, or choose another "
     "with --data"),
    (r"meta\.properties|node id|node ID|cluster ?id|directory id|log director|LogDir|orrupt|"
     r"InvalidRecord|EOF", _OTHER_FOLDER),
)
_DAMAGE: Final = (_WAYS_OUT[-1][0], _WAYS_OUT[-2][0])


def start_error(
    folder: Path, *, exit_code: int | None, log_begin: int, waited_seconds: float
) -> StartError:
    """The error of a start that failed. `exit_code` None: it lives and does not serve.

    `log_begin`: how long broker.log was before this start.
    """
    log = folder / "logs" / "broker.log"
    said = _said(log, log_begin) or _last_words(folder / "logs" / "broker.out")
    if exit_code is None:
        how = f"was not ready after {waited_seconds:.0f} s"
    else:
        how = f"ended {describe_exit(exit_code)} while it started"
    cause = f"the broker {how}{': ' + said if said else ' and said nothing'}"
    way_out = _way_out(folder, cause)
    kind = DamagedFolderError if any(re.search(words, said) for words in _DAMAGE) else StartError
    return kind(f"{cause}{'; ' + way_out if way_out else ''}. Its log: {log}")


def end_told(folder: Path, exit_code: int, log_begin: int) -> str:
    """How a broker that had served ended, and what its log says of it."""
    said = _said(folder / "logs" / "broker.log", log_begin)
    way_out = _way_out(folder, said)
    how = f"the broker ended {describe_exit(exit_code)}{': ' + said if said else ''}"
    return f"{how}{'; ' + way_out if way_out else ''}"


def _way_out(folder: Path, cause: str) -> str | None:
    # A full disk takes no line of a log either, so that Kafka seems to have said nothing.
    return disk_fault(folder) or next(
        (way for words, way in _WAYS_OUT if re.search(words, cause)), None
    )


def _said(log: Path, begin: int) -> str:
    """The last failure that the log tells of since `begin`, with its deepest cause."""
    found = ""
    for line in _lines(log, begin):
        if (failure := _FAILURE.match(line)) is not None:
            found = failure[1]
        elif found and (exception := _EXCEPTION.match(line)) is not None:
            found = _PACKAGES.sub("", exception[1])
    return found[:CAUSE_LENGTH_MAX]


def _last_words(output: Path) -> str:
    """What Java itself said: it begins with the reason."""
    words = [line.strip() for line in _lines(output, 0) if line.strip()]
    return " ".join(words[:3])[:CAUSE_LENGTH_MAX]


def _lines(path: Path, begin: int) -> list[str]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            # A log that is shorter than it was has been begun anew.
            file.seek(max(begin if begin <= size else 0, size - LOG_BYTES_READ_MAX))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
