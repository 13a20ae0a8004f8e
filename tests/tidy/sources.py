"""The project's own files as the tidy tests see them: tracked text files, and parsed Python."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Source:
    """One Python file: where it is, its text, and its syntax tree."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        """The top-level folder it belongs to."""
        return self.path.parts[0]

    def at(self, node: ast.AST) -> str:
        """path:line, as editors and compilers print it."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}"


@cache
def tracked_files() -> tuple[Path, ...]:
    """Every file that git tracks or would add, relative to the root.

    Found by .gitignore and not by git: a checkout may come without it, or belong to another user.
    """
    patterns = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]

    def is_ours(path: Path) -> bool:
        names = (path.name, path.relative_to(ROOT).as_posix())
        return not any(fnmatch(name, pattern) for pattern in (".git", *patterns) for name in names)

    found: list[Path] = []
    folders = [ROOT]
    while folders:
        ours = [path for path in folders.pop().iterdir() if is_ours(path)]
        folders += [path for path in ours if path.is_dir() and not path.is_symlink()]
        found += [path.relative_to(ROOT) for path in ours if path.is_file()]
    return tuple(sorted(found))


@cache
def text_of(path: Path) -> str | None:
    """The text of a tracked file; None when it is not text."""
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


@cache
def sources() -> tuple[Source, ...]:
    """Every Python file of the project."""
    found = []
    for path in tracked_files():
        text = text_of(path) if path.suffix == ".py" else None
        if text is not None:
            found.append(Source(path, text, ast.parse(text, str(path))))
    return tuple(found)


def sources_of(*packages: str) -> tuple[Source, ...]:
    """The Python files below these top-level folders."""
    return tuple(source for source in sources() if source.package in packages)


def imported(tree: ast.Module) -> list[tuple[ast.AST, str]]:
    """Every absolute import with its full dotted name, wherever in the file it stands."""
    names: list[tuple[ast.AST, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names += [(node, f"{node.module}.{alias.name}") for alias in node.names]
    return names
