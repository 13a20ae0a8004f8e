"""Loading the modules that hold handlers, by dotted name or by path of a .py file.

Owns the names under which files are imported and the words for what can go wrong. Refuses to know
what is in a module.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

from agents.worker.errors import ModuleLoadError, TidemillError
from agents.worker.handlers import REGISTRY, Handler

FILE_MODULE_PREFIX: Final = "tidemill_jobs_"
PATH_DIGEST_BYTES: Final = 4  # tells two files of the same name apart
_NOT_A_NAME: Final = re.compile(r"\W")


def load_modules(names: Sequence[str]) -> list[Handler]:
    """Import each module; the handlers of the registry afterwards.

    Raises ModuleLoadError when a module cannot be imported or brings no job.
    """
    for name in names:
        _load(name)
    return list(REGISTRY)


def is_path(name: str) -> bool:
    """Whether `name` is the path of a file and not a dotted name."""
    return name.endswith(".py") or os.sep in name


def module_name_of(path: Path) -> str:
    """The name under which a file is imported: the same in every process, unique by place."""
    place = str(path.resolve())
    digest = hashlib.blake2b(place.encode(), digest_size=PATH_DIGEST_BYTES).hexdigest()
    return f"{FILE_MODULE_PREFIX}{_NOT_A_NAME.sub('_', path.stem)}_{digest}"


def _load(name: str) -> None:
    known = len(REGISTRY)
    module = _load_file(Path(name)) if is_path(name) else _load_dotted(name)
    if len(REGISTRY) == known and not _has_jobs(module.__name__):
        raise ModuleLoadError(
            f"{name} defines no job: decorate a function with @job('type') from tidemill, or name "
            "another module"
        )


def _has_jobs(module: str) -> bool:
    return any(
        handler.function.__module__ == module
        or handler.function.__module__.startswith(module + ".")
        for handler in REGISTRY
    )


def _load_dotted(name: str) -> ModuleType:
    _look_in(Path.cwd())
    try:
        return importlib.import_module(name)
    except TidemillError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ModuleLoadError(
                f"there is no module {name!r}: give a dotted name that Python can import from "
                f"{Path.cwd()}, or the path of a .py file"
            ) from error
        raise ModuleLoadError(_broken(name, error)) from error
    except Exception as error:
        raise ModuleLoadError(_broken(name, error)) from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModuleLoadError(f"there is no file {path}: give the path of a .py file")
    name = module_name_of(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ModuleLoadError(f"{path} is no Python file; its name must end with .py")
    # Modules beside the file can be imported, as when Python runs it.
    _look_in(path.resolve().parent)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, TidemillError) or not isinstance(error, Exception | SystemExit):
            raise
        raise ModuleLoadError(_broken(str(path), error)) from error
    return module


def _look_in(folder: Path) -> None:
    # Last, so that a user's file never shadows an installed package.
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _broken(name: str, error: BaseException) -> str:
    place = ""
    trace = error.__traceback__
    while trace is not None:
        place = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
        trace = trace.tb_next
    return f"{name} cannot be imported: {type(error).__name__}: {error}{place}; mend it first"
