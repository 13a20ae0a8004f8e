"""One file is one module, by whatever names it is given and imported, and in every process.

Each case runs in a process of its own, as a worker does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

# Answers one line of JSON for each: a copy of this process, which has imported what a worker has,
# goes to the folder and loads the words.
SERVER = """
import json, os, sys
sys.path[:] = [entry for entry in sys.path if entry]
from tidemill.agents.worker.errors import TidemillError
from tidemill.agents.worker.loading import load
from tidemill.agents.worker.module_names import LoadPlan, plan_modules

for line in sys.stdin:
    if (copy := os.fork()) == 0:
        asked = json.loads(line)
        os.chdir(asked["folder"])
        try:
            plan = LoadPlan.from_json(plan_modules(asked["words"]).to_json())
            answer = {each.type: each.function.__module__ for each in load(plan)}
        except TidemillError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
        os._exit(0)
    os.waitpid(copy, 0)
"""
JOB = """
from tidemill import job

@job("{type}")
def {type}(payload):
    return "{type}"
"""


def lay(folder: Path, **files: str) -> None:
    """Write files: `a__b` is a/b.py."""
    for name, text in files.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def package(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").touch()


ROOT = str(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": ROOT, "TIDEMILL_NATIVE": "0"},
    ) as process:
        yield process


class Load(Protocol):
    """Type -> name of the module of its handler; or what is wrong."""

    def __call__(self, *words: str) -> dict[str, Any]: ...


@pytest.fixture
def loaded(server: subprocess.Popen[str], tmp_path: Path) -> Load:
    def ask(*words: str) -> dict[str, Any]:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps({"folder": str(tmp_path), "words": words}) + "\n")
        server.stdin.flush()
        answer: dict[str, Any] = json.loads(server.stdout.readline())
        return answer

    return ask


def job(name: str, head: str = "") -> str:
    return head + JOB.format(type=name)


@pytest.mark.parametrize(
    "words",
    [("a.py", "b.py"), ("b.py", "a.py"), ("./b.py", "a.py", "a.py"), ("a", "b.py"),
     ("b.py", "a"), ("b",)],
    ids=" ".join,
)
def test_a_file_that_another_one_imports(
    loaded: Load, tmp_path: Path, words: tuple[str, ...]
) -> None:
    lay(tmp_path, a=job("one"), b=job("two", "import a\n"))
    assert loaded(*words) == {"one": "a", "two": "b"}


@pytest.mark.parametrize("has_init", [True, False], ids=["package", "namespace"])
@pytest.mark.parametrize(
    "words",
    [("pkg/jobs.py",), ("pkg.jobs",), ("pkg.jobs", "pkg/jobs.py"), ("pkg/jobs.py", "pkg.jobs"),
     ("pkg/jobs.py", "pkg/other.py")],
    ids=" ".join,
)
def test_modules_of_a_package_by_path_and_by_name(
    loaded: Load, tmp_path: Path, words: tuple[str, ...], has_init: bool
) -> None:
    lay(tmp_path, pkg__jobs=job("one", "from . import other\n"),
        pkg__other=job("two", "from .words import HI\n"), pkg__words="HI = 1\n")
    if has_init:
        package(tmp_path / "pkg")
    assert loaded(*words) == {"one": "pkg.jobs", "two": "pkg.other"}


@pytest.mark.parametrize(
    "words", [("pkg",), ("pkg/",), ("pkg/__init__.py", "pkg/jobs.py")], ids=" ".join
)
def test_a_whole_package(loaded: Load, tmp_path: Path, words: tuple[str, ...]) -> None:
    lay(tmp_path, pkg__jobs=job("one"))
    (tmp_path / "pkg" / "__init__.py").write_text("from . import jobs\n")
    assert loaded(*words) == {"one": "pkg.jobs"}


def test_a_folder_on_the_path_and_a_folder_in_it(loaded: Load, tmp_path: Path) -> None:
    """`pkg/helpers.py` is `helpers` for one module and `pkg.helpers` for another."""
    lay(tmp_path, pkg__a=job("one", "import helpers\n"), pkg__helpers=job("help"),
        b=job("two", "import pkg.helpers, pkg.a, helpers\nassert pkg.helpers is helpers\n"))
    assert loaded("pkg/a.py", "b.py") == {"one": "a", "two": "b", "help": "helpers"}
    # Whichever name came first stays the one.
    assert loaded("b.py", "pkg/a.py") == {"one": "pkg.a", "two": "b", "help": "pkg.helpers"}


def test_links_and_circles(loaded: Load, tmp_path: Path) -> None:
    lay(tmp_path, a=job("one", "import b\n"), b=job("two", "import a\n"))
    (tmp_path / "link.py").symlink_to(tmp_path / "a.py")
    assert loaded("link.py", "b.py") == {"one": "a", "two": "b"}


def test_files_of_one_name(loaded: Load, tmp_path: Path) -> None:
    lay(tmp_path, x__jobs=job("one"), y__jobs=job("two"), jobs=job("three"))
    found = loaded("x/jobs.py", "y/jobs.py", "jobs.py")
    assert found == {"one": "x.jobs", "two": "y.jobs", "three": "jobs"}
    assert loaded("x/jobs.py", "jobs.py") == {"one": "x.jobs", "three": "jobs"}


@pytest.mark.parametrize("name", ["email", "queue", "json", "test", "pydantic", "tidemill", "rich"])
@pytest.mark.parametrize("by", ["path", "name"])
def test_a_name_that_belongs_to_another_module_is_said(
    loaded: Load, tmp_path: Path, name: str, by: str
) -> None:
    lay(tmp_path, **{name: job("one")})
    words = f"{name}.py" if by == "path" else name
    error = loaded(words)["error"]
    assert "belongs to" in error
    assert "rename" in error


@pytest.mark.parametrize("name", ["v1.jobs.py", "jobs.txt", "none.py", "sub"])
def test_what_is_no_module_is_said(loaded: Load, tmp_path: Path, name: str) -> None:
    (tmp_path / "v1.jobs.py").write_text(job("one"))
    (tmp_path / "jobs.txt").write_text(job("one"))
    (tmp_path / "sub").mkdir()
    assert "error" in loaded(f"./{name}")


def test_a_module_that_only_gathers_jobs_of_others(loaded: Load, tmp_path: Path) -> None:
    lay(tmp_path, a=job("one"), everything="from a import one\n", all_of_it="import a\n")
    assert loaded("a.py", "everything.py", "all_of_it.py") == {"one": "a"}


@pytest.mark.parametrize(
    ("text", "words"),
    [("def f(:\n", ["SyntaxError", "bad.py:1"]), ("\n\n1 / 0\n", ["division", "bad.py:3"]),
     ("raise SystemExit('no key')\n", ["SystemExit: no key", "bad.py:1"]),
     ("import missing_thing\n", ["missing_thing", "bad.py:1"]),
     ("import helper\n", ["KeyError", "helper.py:2"])],
)
def test_where_a_module_fails_is_said(
    loaded: Load, tmp_path: Path, text: str, words: list[str]
) -> None:
    lay(tmp_path, bad=text, helper="\n{}['x']\n")
    for given in ("bad.py", "bad"):
        error = loaded(given)["error"]
        assert all(word in error for word in words), error


FRESH = """
import multiprocessing, os, pickle, sys
from tidemill.agents.worker.loading import load_modules

if __name__ == "__main__":
    [handler] = load_modules(sys.argv[1:])
    # What user code does to its process must not matter.
    os.chdir("/")
    module = sys.modules[handler.function.__module__]
    decorated = getattr(module, handler.function.__name__)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(decorated, ({},)) == "one"
        assert pool.apply(pickle.dumps, (module.Order(),)) == pickle.dumps(module.Order())
    print("equal")
"""


@pytest.mark.parametrize("given", ["jobs.py", "pkg/inner/jobs.py", "my-jobs.py"])
def test_a_fresh_process_imports_it_by_name(tmp_path: Path, given: str) -> None:
    path = tmp_path / given
    package(path.parent) if "/" in given else None
    if "/" in given:
        package(path.parent.parent)
    path.write_text(job("one") + "\nclass Order:\n    pass\n")
    script = tmp_path.parent / f"{tmp_path.name}_main.py"
    script.write_text(FRESH)
    done = subprocess.run(
        [sys.executable, str(script), given], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": ROOT, "TIDEMILL_NATIVE": "0"}, timeout=60, check=False,
    )
    assert done.stdout == "equal\n", done.stderr
