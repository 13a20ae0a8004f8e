"""Which module each word of a worker's command line means, settled before anything is imported.

Owns the one name of each file, the folders that modules are found in, and the words for names that
cannot work. Refuses to import a user's code: `tidemill.agents.worker.loading` does.

One file is one module, and its name is one that any fresh process can import: a child of ours, one
of `multiprocessing`, whoever reads a pickle. So a file in a package has the package's dotted name.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.machinery import PathFinder
from json import dumps, loads  # by name: a handler may have put others into the module
from pathlib import Path
from typing import Any, Final, Self

from tidemill.agents.worker.errors import MissingModule, ModuleLoadError

SUFFIX: Final = ".py"
PACKAGE_FILE: Final = "__init__.py"
_INSTALLED: Final = tuple(
    os.path.join(os.path.realpath(sysconfig.get_path(name)), "")
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


@dataclass(frozen=True, slots=True)
class Target:
    """One module to load."""

    given: str
    """As the user wrote it."""
    name: str
    """The name that it is imported by."""
    file: str | None
    """Its file with all links followed; None when it was given by a dotted name."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What a worker loads, and where: the same in the worker and in each of its children."""

    folder: str
    """The working folder at the start, whatever user code makes of it later."""
    search: tuple[str, ...]
    """`sys.path` for user code."""
    targets: tuple[Target, ...]
    environment: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    """The environment before any user code ran. It does not travel as text."""

    def to_json(self) -> str:
        """As text, for a child."""
        fields = asdict(self)
        del fields["environment"]
        return dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        fields: dict[str, Any] = loads(text)
        targets = tuple(Target(**each) for each in fields["targets"])
        return cls(fields["folder"], tuple(fields["search"]), targets)


@dataclass(frozen=True, slots=True)
class _Place:
    """A file under one of the names that it could have."""

    file: Path
    parts: tuple[str, ...]
    root: Path

    @property
    def name(self) -> str:
        return ".".join(self.parts)

    def longer(self) -> _Place | None:
        """The same file, named from one folder further up; None where that is no name."""
        above = self.root.name
        if not above or "." in above:
            return None
        return _Place(self.file, (above, *self.parts), self.root.parent)


def plan_modules(names: Iterable[str]) -> LoadPlan:
    """Name every module. Raises ModuleLoadError when one cannot be what was asked for."""
    folder = Path.cwd()
    search = [_absolute(entry, folder) for entry in sys.path]
    _add(search, folder)
    base = tuple(search)
    targets: dict[str, Target] = {}
    for given in names:
        if not is_path(given):
            _refuse_hidden(given, folder, base)
            targets.setdefault(given, Target(given, given, None))
            continue
        place = _place_of(given, folder, base)
        known = [each for each in targets.values() if each.file == str(place.file)]
        if known:
            continue
        place = _settled(given, place, targets, base)
        targets[place.name] = Target(given, place.name, str(place.file))
        # Last, so that a user's file never hides an installed package. Modules beside the file
        # can be imported, as when Python runs it.
        _add(search, place.root)
        _add(search, place.file.parent)
    return LoadPlan(str(folder), tuple(search), tuple(targets.values()), dict(os.environ))


def is_path(name: str) -> bool:
    """Whether `name` is the path of a file or folder and not a dotted name."""
    return name.endswith(SUFFIX) or os.sep in name


def is_installed(file: str) -> bool:
    """Whether a file belongs to Python or to an installed package, and not to a user's project."""
    return os.path.realpath(file).startswith(_INSTALLED)


def _absolute(entry: str, folder: Path) -> str:
    # What is no folder is a word for an import hook, such as those of editable installs.
    if not entry:
        return str(folder)
    return os.path.abspath(entry) if os.path.exists(entry) else entry


def _add(search: list[str], folder: Path) -> None:
    if str(folder) not in search:
        search.append(str(folder))


def _place_of(given: str, folder: Path, base: Sequence[str]) -> _Place:
    path = Path(given)
    if path.is_dir() and (path / PACKAGE_FILE).is_file():
        path = path / PACKAGE_FILE
    if not path.is_file():
        raise MissingModule(
            f"there is no file {given}: give the path of a .py file, or a dotted name that Python "
            f"can import from {folder}"
        )
    file = path.resolve()
    if file.suffix != SUFFIX:
        raise ModuleLoadError(f"{given} is no Python file: its name must end with {SUFFIX}")
    if "." in file.stem:
        raise ModuleLoadError(
            f"{given} cannot be imported by a name, because of the dot in {file.stem!r}: rename "
            f"the file, for example to {file.stem.replace('.', '_')}{SUFFIX}"
        )
    levels = _relative_levels(file)
    place = _Place(file, () if file.name == PACKAGE_FILE else (file.stem,), file.parent)
    while _belongs_higher(place, levels, base):
        longer = place.longer()
        if longer is None:
            raise ModuleLoadError(
                f"{given} is in a package whose folder {place.root} has no name that Python can "
                "import: rename the folder"
            )
        place = longer
    return place


def _belongs_higher(place: _Place, levels: int, base: Sequence[str]) -> bool:
    """Whether the name must begin further up: a package, or relative imports without one."""
    is_package_file = place.file.name == PACKAGE_FILE
    if not place.parts or len(place.parts) - 1 + is_package_file < levels:
        return True
    # A folder that is on the path already is where names begin, though it may look like a package.
    return (place.root / PACKAGE_FILE).is_file() and str(place.root) not in base


def _relative_levels(file: Path) -> int:
    """How many packages the file's relative imports go up; 0 without any."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return 0  # the import says what is wrong
    return max((node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)),
               default=0)


def _settled(
    given: str, place: _Place, targets: dict[str, Target], search: Sequence[str]
) -> _Place:
    """The shortest name that no other module has."""
    while True:
        in_the_way = _in_the_way(place, targets, search)
        if in_the_way is None:
            return place
        longer = None if is_installed(in_the_way) or _is_ours(in_the_way) else place.longer()
        if longer is None or (place.root / PACKAGE_FILE).is_file():
            raise ModuleLoadError(
                f"{given} would be imported as {place.name!r}, and this name belongs to "
                f"{in_the_way}: rename {_renamed(place)}, for example to "
                f"{place.parts[0]}_jobs{SUFFIX if len(place.parts) == 1 else ''}"
            )
        place = longer


def _renamed(place: _Place) -> str:
    return "the file" if len(place.parts) == 1 else f"the folder {place.root / place.parts[0]}"


def _is_ours(file: str) -> bool:
    ours = Path(__file__).parents[2].resolve()  # the folder of `tidemill`, the one name of ours
    return os.path.realpath(file).startswith(f"{ours}{os.sep}")


def _in_the_way(
    place: _Place, targets: dict[str, Target], search: Sequence[str]
) -> str | None:
    """The file of another module that has this name already; None when it is free."""
    other = targets.get(place.name)
    if other is not None and other.file is not None:
        return other.file
    top = place.parts[0]
    found = _found(top, search)
    if found is None:
        return None
    places = [os.path.realpath(each) for each in found]
    ours = place.root / top
    mine = {str(ours.with_name(top + SUFFIX)), str(ours / PACKAGE_FILE), str(ours)}
    if mine & set(places):
        return None
    # Folders without a package file are one package together.
    return None if all(map(os.path.isdir, places)) and len(place.parts) > 1 else places[0]


def _found(top: str, search: Sequence[str]) -> list[str] | None:
    """Where Python finds the module of this name now: its file, or its folders; None: nowhere."""
    if top in sys.stdlib_module_names:
        spec = PathFinder.find_spec(top, [_INSTALLED[0]])
        place = spec.origin if spec is not None and spec.origin else None
        return [place or os.path.join(_INSTALLED[0], top)]
    spec = None if top in sys.modules else PathFinder.find_spec(top, search)
    if spec is None:
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            return None
    if spec is None:
        return None
    if spec.has_location and spec.origin:
        return [spec.origin]
    return list(spec.submodule_search_locations or ()) or None


def _refuse_hidden(name: str, folder: Path, search: Sequence[str]) -> None:
    """A dotted name that nothing has, or that another module than the one here has."""
    top = name.split(".")[0]
    here = [folder / f"{top}{SUFFIX}", folder / top / PACKAGE_FILE]
    found = _found(top, search)
    if found is None:
        raise MissingModule(
            f"there is no module {name!r}: give a dotted name that Python can import from "
            f"{folder}, or the path of a .py file"
        )
    if not any(each.is_file() for each in here):
        return
    real = {str(each.resolve()) for each in here}
    if not real & {os.path.realpath(each) for each in found}:
        hidden = next(each for each in here if each.is_file())
        raise ModuleLoadError(
            f"{name} is not {hidden}: the name {top!r} belongs to {found[0]}; rename "
            f"{hidden if hidden.name != PACKAGE_FILE else hidden.parent}"
        )
