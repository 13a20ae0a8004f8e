"""What comes in and goes out as text, whatever the locale is.

Owns the encoding of arguments and of stdout and stderr. Refuses to know what is said.
"""

from __future__ import annotations

import io
import locale
import os
import sys
from typing import Final

OWN_MODE_COMMANDS: Final = frozenset({"worker"})
"""Commands that run other people's code: Python's mode is theirs to choose."""


def open_closed() -> None:
    """Give stdin, stdout and stderr to nobody where they are closed (`>&-`, some supervisors).

    Their numbers would go to the next files and sockets, and what is said would be written there.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is given, which is this one.
            opened = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(opened, True)
            setattr(sys, name, os.fdopen(opened, mode, encoding="utf-8", closefd=False))


def use_utf8() -> None:
    """Start this command anew in Python's UTF-8 mode where the locale has another encoding.

    Otherwise arguments outside of ASCII would be no text, and names of folders would be read in one
    encoding and written in another. An option of the interpreter says it and no variable, so that
    nothing that we start inherits it.
    """
    if sys.getfilesystemencoding() == "utf-8" or sys.platform == "win32":
        return
    if sys.flags.utf8_mode or (sys.argv[1:2] and sys.argv[1] in OWN_MODE_COMMANDS):
        return
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def prepare(*, is_supervised: bool) -> None:
    """Let nothing that we say fail for its encoding; a supervisor reads UTF-8."""
    if is_supervised:
        encoding: str | None = "utf-8"
    elif sys.flags.utf8_mode and not os.environ.get("PYTHONIOENCODING"):
        found = locale.getencoding()
        # In the locale "C" Python itself writes UTF-8.
        encoding = "utf-8" if found.upper().startswith(("ANSI_X3", "US-ASCII")) else found
    else:
        encoding = None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def not_text(arguments: list[str]) -> str | None:
    """The first argument that is no text in UTF-8, as it can be shown; None when all are."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            return ascii(argument)
    return None
