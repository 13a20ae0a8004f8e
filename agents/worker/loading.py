"""Loading the modules that hold handlers, as `tidemill.agents.worker.module_names` has named them.

Owns the import itself, that one file is never imported twice, and the words for what goes wrong.
Refuses to know what is in a module.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import inspect
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Final

from tidemill.agents.worker.errors import MissingModule, ModuleLoadError, TidemillError
from tidemill.agents.worker.handlers import REGISTRY, Handler
from tidemill.agents.worker.module_names import (
    LoadPlan,
    Target,
    is_installed,
    is_path,
    plan_modules,
)
from tidemill.agents.worker.signature import base_of

__all__ = ["is_path", "load", "load_modules", "loaded_files"]

_SCRIPT_FOLDER: Final = "<frozen importlib"


def load_modules(names: Iterable[str]) -> list[Handler]:
    """Plan and import; the handlers of the registry afterwards.

    Raises ModuleLoadError when a module cannot be imported or brings no job.
    """
    return load(plan_modules(names))


def load(plan: LoadPlan) -> list[Handler]:
    """Import each module of the plan; the handlers of the registry afterwards."""
    sys.path[:] = plan.search
    _ONE_FILE.install()
    for target in plan.targets:
        known = len(REGISTRY)
        module = _import(target, plan)
        if len(REGISTRY) == known and not _has_jobs(module):
            raise ModuleLoadError(
                f"{target.given} defines no job: decorate a function with @job('type') from "
                "tidemill, or name another module"
            )
    return list(REGISTRY)


def loaded_files() -> list[str]:
    """The files of a user's own modules that this process has imported."""
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return sorted(file for file in files if isinstance(file, str) and not is_installed(file))


def _has_jobs(module: ModuleType) -> bool:
    """Whether handlers are defined in the module, below it, or in what it imports by name."""
    functions = {id(handler.function) for handler in REGISTRY}
    functions |= {id(base_of(handler.function)) for handler in REGISTRY}
    homes = {handler.function.__module__ for handler in REGISTRY}
    return any(f"{home}.".startswith(f"{module.__name__}.") for home in homes) or any(
        id(value) in functions or id(_wrapped_by(value)) in functions
        or (isinstance(value, ModuleType) and value.__name__ in homes)
        for value in list(vars(module).values())
    )


def _wrapped_by(value: object) -> object:
    """The function that a decorated one wraps. No code of the value's own runs for the question."""
    wrapped = inspect.getattr_static(value, "__wrapped__", None)
    return None if wrapped is None else base_of(wrapped)


def _import(target: Target, plan: LoadPlan) -> ModuleType:
    try:
        module = importlib.import_module(target.name)
    except TidemillError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001  # a user's module may raise anything
        if target.file is None and _is_missing(target.name, error):
            raise MissingModule(
                f"there is no module {target.name!r}: give a dotted name that Python can import "
                f"from {plan.folder}, or the path of a .py file"
            ) from None
        raise ModuleLoadError(_broken(target.given, error, plan)) from own_trace(error)
    found = getattr(module, "__file__", None)
    if target.file is not None and os.path.realpath(found or "") != target.file:
        raise ModuleLoadError(
            f"{target.given} would be imported as {target.name!r}, and this name belongs to "
            f"{found}: rename the file"
        )
    return module


def _is_missing(name: str, error: BaseException) -> bool:
    return (
        isinstance(error, ModuleNotFoundError)
        and error.name is not None
        and f"{name}.".startswith(f"{error.name}.")
    )


def own_trace(error: BaseException) -> BaseException:
    """The error with a trace that begins where the user's own code does."""
    trace = error.__traceback__
    while trace is not None and _is_of_import(trace):
        trace = trace.tb_next
    return error.with_traceback(trace)


def _is_of_import(trace: TracebackType) -> bool:
    file = trace.tb_frame.f_code.co_filename
    return file.startswith(_SCRIPT_FOLDER) or file in (__file__, importlib.__file__)


def _broken(name: str, error: BaseException, plan: LoadPlan) -> str:
    place = ""
    trace = error.__traceback__
    while trace is not None:
        if not _is_of_import(trace):
            place = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename is not None:
        place = f" ({error.filename}:{error.lineno})"
        message = error.msg
    else:
        message = str(error)
    said = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return f"{name} cannot be imported: {said}{place}; mend it first{_hidden_hint(error, plan)}"


def _hidden_hint(error: BaseException, plan: LoadPlan) -> str:
    """For a name that is looked for in the wrong module: a user's file that another one hides."""
    if not isinstance(error, ImportError) or error.name is None:
        return ""
    top = error.name.split(".")[0]
    used = getattr(sys.modules.get(top), "__file__", None)
    for folder in plan.search:
        for mine in (Path(folder) / f"{top}.py", Path(folder) / top):
            is_other = used is not None and not os.path.realpath(used).startswith(str(mine))
            if is_other and mine.exists() and not is_installed(str(mine)):
                return f". {mine} is hidden by {used}: rename it"
    return ""


class _SameModule(importlib.abc.Loader):
    """Gives a second name to a module that is there already."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _OneFile(importlib.abc.MetaPathFinder):
    """Finds the module of a user's file that was imported before by another name.

    Two folders on the path, one in the other, give a file two names. Imported by both, each job of
    the file would have two handlers and each class a twin that `isinstance` does not know.
    """

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def install(self) -> None:
        """Look before all other finders; those see what this one leaves."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or not spec.has_location or spec.origin is None:
            return None
        if is_installed(spec.origin):
            return None
        file = os.path.realpath(spec.origin)
        first = self._names.setdefault(file, fullname)
        module = sys.modules.get(first)
        if first == fullname or module is None:
            self._names[file] = fullname
            return None
        return importlib.machinery.ModuleSpec(
            fullname, _SameModule(module), origin=spec.origin,
            is_package=spec.submodule_search_locations is not None,
        )


_ONE_FILE: Final = _OneFile()
