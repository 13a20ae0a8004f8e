"""All commands in one tree, and their errors as one line and an exit code.

Owns the tree. Refuses to know what a command does.
"""

from __future__ import annotations

import errno
import sys
from typing import Annotated, Final

import typer

from tidemill.agents import exit_codes
from tidemill.agents.plain_text import LINES, plain
from tidemill.cli import admin, asking, dead, jobs, new, outbox, roles, schedules, showing

app = typer.Typer(
    name="tidemill",
    help="Background jobs on an event log: Kafka holds the truth, ClickHouse remembers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Module and name of an exception -> exit code. Named, so that nothing is imported to look at it;
# subclasses count. The first that fits is taken.
_EXITS: Final = (
    ("tidemill.agents.topics", "PartitionsMismatch", exit_codes.CONFLICT),
    ("tidemill.agents.topics", "TopicConflict", exit_codes.CONFLICT),
    ("tidemill.agents.topics", "TopicsError", exit_codes.UNREACHABLE),
    ("tidemill.agents.worker.errors", "MissingModule", exit_codes.CONFIG),
    ("tidemill.agents.worker.errors", "TidemillError", exit_codes.MODULES),
    ("tidemill.agents.settings", "SettingsError", exit_codes.CONFIG),
    ("tidemill.agents.dev", "DevError", None),
    ("tidemill.agents.embedded.errors", "PortInUseError", exit_codes.IN_USE),
    ("tidemill.agents.embedded.errors", "FolderInUseError", exit_codes.IN_USE),
    ("tidemill.agents.embedded.errors", "DamagedFolderError", exit_codes.DAMAGED),
    ("tidemill.agents.embedded.errors", "JavaError", exit_codes.CONFIG),
    ("tidemill.agents.embedded.errors", "EmbeddedError", exit_codes.FAILED),
    ("tidemill.requests", "InvalidRequest", exit_codes.USAGE),
    ("tidemill.client", "WaitTimeout", exit_codes.TIMED_OUT),
    ("tidemill.answers", "AnswerTimeout", exit_codes.TIMED_OUT),
    ("tidemill.agents.answers", "AnswerTimeout", exit_codes.TIMED_OUT),
    ("tidemill.agents.answers", "AnswerError", exit_codes.UNREACHABLE),
    ("tidemill.sending", "EnqueueFailed", exit_codes.UNREACHABLE),
    ("tidemill.looking", "Unreachable", exit_codes.UNREACHABLE),
    ("tidemill.sql", "SqlError", None),
    ("tidemill.outbox.errors", "RelayError", None),
    ("tidemill.requests", "ClientError", exit_codes.FAILED),
    ("tidemill.cli.output", "CliError", None),
)
# What the machine refuses, and no code of ours can mend: told in a line, without a trace.
_LIMITS: Final = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.ENOMEM,
})

PIPE_CLOSED: Final = "PacifyFlushWrapper"  # what Typer puts in place of a stdout that is closed


def _version(is_asked: bool) -> None:
    if is_asked:
        from tidemill import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """What stands before a command."""


def _add(module_app: typer.Typer) -> None:
    app.registered_commands.extend(module_app.registered_commands)
    app.registered_groups.extend(module_app.registered_groups)


_add(roles.app)
_add(new.app)
_add(showing.app)
_add(jobs.app)
_add(asking.app)
_add(dead.app)
_add(schedules.app)
_add(admin.app)
_add(outbox.app)


def run() -> int:
    """Run the command of `sys.argv`; the exit code."""
    try:
        app()
    except SystemExit as ended:
        if type(sys.stdout).__name__ == PIPE_CLOSED:
            # The reader of our output, such as `head`, had enough: that is no failure.
            return exit_codes.OK
        return ended.code if isinstance(ended.code, int) else exit_codes.OK
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output, such as `head`, had enough; leave nothing to flush.
        sys.stdout = None
        return exit_codes.OK
    except Exception as error:
        code = exit_code_of(error)
        if code is None:
            raise
        sys.stderr.write(f"error: {plain(_told(error), LINES)}\n")
        return code
    return exit_codes.OK


def _told(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    name = error.filename
    where = "" if name is None else f"{name if isinstance(name, int) else str(name)!r}: "
    return f"{where}{error.strerror}"


def exit_code_of(error: Exception) -> int | None:
    """How the command ends for an error of ours; None for any other."""
    for module_name, name, code in _EXITS:
        module = sys.modules.get(module_name)
        if module is not None and isinstance(error, getattr(module, name)):
            return code if code is not None else _own_code(error)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return exit_codes.CONFIG if _is_ours(error.name) else None
    if isinstance(error, OSError) and error.errno in _LIMITS:
        return exit_codes.FAILED
    return None


def _own_code(error: Exception) -> int:
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return code
    return exit_codes.FAILED if getattr(error, "is_reachable", False) else exit_codes.UNREACHABLE


def _is_ours(name: str) -> bool:
    return name.split(".")[0] in {"faust", "aiokafka", "fastapi", "uvicorn", "chdb", "jgo"}
