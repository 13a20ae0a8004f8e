"""One name at the top: `schemas`, `streams` and `agents` are packages of `tidemill`, by links.

A file that is imported by two names is two modules, with two of each class. So nothing imports
these folders bare, and nothing by a relative name, which would hide from the arrow of imports.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from typing import Final

import pytest

from tests.tidy.sources import ROOT, Source, imported, sources, sources_of

FOLDERS: Final = ("schemas", "streams", "agents")
ANY: Final = "|".join(FOLDERS)
# Its texts are files of an application that has folders of the same names.
APPLICATION: Final = "tests/integration/test_one_name.py"
# What the package at the top needs to load its names when they are used, and nothing of ours.
LAZY: Final = {"__future__", "importlib", "typing"}
IN_TEXT: Final = re.compile(
    rf"(?:^|[\n;:])\s*(?:from (?:{ANY})(?:\.[\w.]+)? import |import (?:{ANY})\b(?! ?[`\w]))"
)


def bare_imports(source: Source) -> list[str]:
    found = [
        f"{source.at(node)}: write tidemill.{name}"
        for node, name in imported(source.tree)
        if name.partition(".")[0] in FOLDERS
    ]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.append(f"{source.at(node)}: write the whole name instead of a relative one")
        elif str(source.path) == APPLICATION:
            continue
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [
                f"{source.at(node)}: {match[0]!r}: write it with tidemill. before it"
                for match in IN_TEXT.finditer(node.value)
            ]
    return found


def parsed(text: str) -> Source:
    return Source(ROOT / "example.py", text, ast.parse(text))


def test_nothing_imports_the_folders_bare() -> None:
    assert [line for source in sources() for line in bare_imports(source)] == []


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize(
    "form",
    [
        "import {0}", "import {0}.x as y", "from {0} import x", "from {0}.x import y",
        "def f():\n    from {0}.x import y", "run('from {0}' '.x import y')",
        "run('import {0}.x')", "run('import sys; import {0}')", "from .{0} import x",
    ],
)
def test_a_bare_import_is_caught(form: str, name: str) -> None:
    assert len(bare_imports(parsed(form.format(name)))) == 1


@pytest.mark.parametrize("name", FOLDERS)
def test_the_packages_are_relative_links(name: str) -> None:
    link = ROOT / "tidemill" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"


def test_the_package_at_the_top_loads_nothing_by_itself() -> None:
    (top,) = [s for s in sources_of("tidemill") if str(s.path) == "tidemill/__init__.py"]
    loaded = [
        name for node in top.tree.body if isinstance(node, ast.Import | ast.ImportFrom)
        for _, name in imported(ast.Module([node], []))
    ]
    assert [name for name in loaded if name.partition(".")[0] not in LAZY] == []


def test_each_file_is_one_module() -> None:
    """All of ours is imported, and no file has two names."""
    code = (
        "import importlib, os, pkgutil, sys, tidemill\n"
        "for each in pkgutil.walk_packages(tidemill.__path__, 'tidemill.'):\n"
        "    '__main__' in each.name or importlib.import_module(each.name)\n"
        "seen = {}\n"
        "for name, module in list(sys.modules.items()):\n"
        "    file = getattr(module, '__file__', None) or ''\n"
        "    if name != '__main__' and file.startswith(os.getcwd() + os.sep + 'tidemill'):\n"
        "        seen.setdefault(os.path.realpath(file), []).append(name)\n"
        "print(len(seen), [names for names in seen.values() if len(names) > 1])\n"
        f"print([name for name in {FOLDERS!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "TIDEMILL_NATIVE": "0"}, check=False,
    )
    assert done.returncode == 0, done.stderr
    count, _, twice = done.stdout.partition(" ")
    assert int(count) > 100
    assert twice == "[]\n[]\n"
