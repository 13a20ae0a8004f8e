"""House rules that a program can check: foreign hosts and paths, size, leftovers."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path

from tests.tidy.sources import ROOT, Source, sources, sources_of, text_of, tracked_files
from tools.native import compiled_sources

CODE = ("schemas", "streams", "agents", "tidemill", "systems")
FUNCTION_LINES_MAX = 70
FUNCTION_LINES_P90 = 30
MODULE_LINES_MAX = 500
MODULE_LINES_P90 = 400

# Each written in two parts, so that this file does not name what it bans. Where packages come from
# is the business of whoever installs, and of the tools' own settings.
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com/"),
        ("yarnpkg", "com"),
        ("repo", "maven"),
        ("repo1", "maven"),
        ("search", "maven"),
        ("central", "sonatype"),
        ("proxy", "golang"),
        ("sum", "golang"),
        ("deb", "debian"),
        ("crates", "io"),
        ("rubygems", "org"),
    )
)
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:root|work|home/\w+|Users/\w+)/")
LEFTOVER = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b|NotImplemented" + r"Error")


def lines_matching(pattern: re.Pattern[str], paths: tuple[Path, ...]) -> list[str]:
    found = []
    for path in paths:
        for number, line in enumerate((text_of(path) or "").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path}:{number}: {line.strip()[:120]}")
    return found


def test_no_tracked_file_names_a_registry_host() -> None:
    hosts = re.compile("|".join(re.escape(host) for host in REGISTRY_HOSTS))
    assert lines_matching(hosts, tracked_files()) == []


def test_no_lock_says_where_packages_come_from() -> None:
    locks = tuple(path for path in tracked_files() if path.suffix == ".txt")
    assert lines_matching(re.compile(r"^\s*(?:--(?:find-links|.*index.*)|-[fi]\b)"), locks) == []


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    assert lines_matching(MACHINE_PATH, tracked_files()) == []


def test_the_patterns_catch_what_they_are_for() -> None:
    assert MACHINE_PATH.search("see /home/" + "someone/project")
    assert MACHINE_PATH.search('open("/root' + '/x")')
    assert not MACHINE_PATH.search("https://example.org/work/3")
    assert not MACHINE_PATH.search("$HOME/work/x")


def test_nothing_is_left_unfinished() -> None:
    python = tuple(source.path for source in sources())
    assert lines_matching(LEFTOVER, python) == []


def functions(source: Source) -> list[tuple[str, int]]:
    return [
        (f"{source.at(node)} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def p90(values: list[int]) -> float:
    return statistics.quantiles(values, n=10)[-1]


def test_functions_stay_small() -> None:
    measured = [entry for source in sources_of(*CODE) for entry in functions(source)]
    assert [f"{name}: {n} lines" for name, n in measured if n > FUNCTION_LINES_MAX] == []
    assert p90([n for _, n in measured]) <= FUNCTION_LINES_P90


def test_modules_stay_small() -> None:
    measured = [(s.path, len(s.text.splitlines())) for s in sources_of(*CODE)]
    assert [f"{path}: {n} lines" for path, n in measured if n > MODULE_LINES_MAX] == []
    assert p90([n for _, n in measured]) <= MODULE_LINES_P90


def test_every_module_says_what_it_is() -> None:
    silent = [str(s.path) for s in sources_of(*CODE) if s.text and not ast.get_docstring(s.tree)]
    assert silent == []


def test_tests_wait_for_conditions_and_never_sleep() -> None:
    # A handler whose work is to take long and a schedule of faults may sleep; what asserts may not.
    asserting = [s for s in sources_of("tests") if s.path.name.startswith(("test_", "conftest"))]
    sleeping = [
        source.at(node)
        for source in asserting
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep")
    ]
    assert sleeping == [], "wait on a condition with tests.waiting.wait_until"


def test_locks_hold_hashes_and_no_addresses() -> None:
    for name in ("run", "systems", "dev", "native"):
        path = Path(f"locks/{name}.txt")
        lines = (text_of(path) or "").splitlines()
        pins = [line for line in lines if re.match(r"[a-z0-9]", line)]
        assert pins, f"{path} is empty"
        assert all("==" in line for line in pins)
        assert not [line for line in lines if "://" in line or line.startswith("-")]
        assert sum("--hash=sha256:" in line for line in lines) >= len(pins)


def names_caught_twice(tree: ast.Module) -> list[str]:
    """Functions that catch different exceptions under one name, which mypyc compiles wrongly."""
    found = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        caught: dict[str, set[str]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler) and node.name and node.type:
                caught.setdefault(node.name, set()).add(ast.unparse(node.type))
        found += [f"{function.name}: {name}" for name, kinds in caught.items() if len(kinds) > 1]
    return found


def test_compiled_functions_catch_no_two_exceptions_under_one_name() -> None:
    compiled = {Path(path) for path in compiled_sources(ROOT)}
    looked_at = [source for source in sources() if source.path in compiled]
    assert len(looked_at) == len(compiled)
    wrong = [
        f"{source.path}: {name}" for source in looked_at for name in names_caught_twice(source.tree)
    ]
    assert wrong == [], "give each `except ... as` of one function a name of its own"


def test_a_name_caught_twice_is_found() -> None:
    text = "def f():\n try: ...\n except {} as error: ...\n except {} as {}: ...\n"
    for first, second, name, count in (
        ("KeyError", "OSError", "error", 1), ("KeyError", "OSError", "other", 0),
        ("KeyError", "KeyError", "error", 0),
    ):
        assert len(names_caught_twice(ast.parse(text.format(first, second, name)))) == count
