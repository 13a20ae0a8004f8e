"""Loading handlers: dotted names, files, stable names, and words for what goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tidemill import jobs
from tidemill.agents.worker import handlers, loading
from tidemill.agents.worker.errors import JobDefinitionError, ModuleLoadError
from tidemill.agents.worker.handlers import Registry
from tidemill.agents.worker.loading import load_modules
from tidemill.agents.worker.start import check_threads, queues_of

GOOD = """
from __future__ import annotations
import beside
from pydantic import BaseModel
from tidemill import job

class Greeting(BaseModel):
    name: str

@job("{type}", queue="{queue}")
async def greet(payload: Greeting) -> str:
    return beside.WORD
"""


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Registry]:
    """A registry of the test's own, and the interpreter's tables as they were."""
    fresh = Registry()
    for module in (handlers, jobs, loading):
        monkeypatch.setattr(module, "REGISTRY", fresh)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield fresh
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "beside.py").write_text("WORD = 'hi'\n")
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_and_a_file_of_the_same_name_elsewhere(tmp_path: Path) -> None:
    one = write(tmp_path / "a", "my-jobs.py", GOOD.format(type="one", queue="q1"))
    two = write(tmp_path / "b", "my-jobs.py", GOOD.format(type="two", queue="q2"))
    found = load_modules([str(one), str(two), str(one)])
    assert [handler.type for handler in found] == ["one", "two"]
    # Each has a name that a fresh process can import, too.
    assert [handler.function.__module__ for handler in found] == ["my-jobs", "b.my-jobs"]


def test_a_dotted_name_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "pkg_of_test", "__init__.py", "")
    text = GOOD.replace("import beside", "from . import beside").format(type="in", queue="q")
    write(tmp_path / "pkg_of_test", "inner.py", text)
    monkeypatch.chdir(tmp_path)
    assert [handler.type for handler in load_modules(["pkg_of_test.inner"])] == ["in"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", "defines no job"), ("import nowhere_to_be_found\n", r"cannot be imported.*:1"),
        ("def f(:\n", "SyntaxError"), ("raise SystemExit(3)\n", "SystemExit"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, "odd.py", text)
    with pytest.raises(ModuleLoadError, match=words):
        load_modules([str(path)])
    if "no job" not in words:
        assert "odd" not in sys.modules


def test_missing_modules_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModuleLoadError, match="there is no file"):
        load_modules([str(tmp_path / "none.py")])
    with pytest.raises(ModuleLoadError, match=r"there is no module 'no\.such\.thing'"):
        load_modules(["no.such.thing"])


def test_a_definition_error_passes_as_it_is(tmp_path: Path) -> None:
    text = GOOD.format(type="x y", queue="q")
    with pytest.raises(JobDefinitionError, match="the type must be"):
        load_modules([str(write(tmp_path, "bad.py", text))])


def test_queues_are_those_of_the_handlers_less_the_unwanted(tmp_path: Path) -> None:
    one = write(tmp_path / "a", "one.py", GOOD.format(type="one", queue="q1"))
    two = write(tmp_path / "b", "two.py", GOOD.format(type="two", queue="q2"))
    known = {handler.type: handler for handler in load_modules([str(one), str(two)])}
    assert queues_of(known, None) == ("q1", "q2")
    assert queues_of(known, ["q2", "q2"]) == ("q2",)
    with pytest.raises(ModuleLoadError, match=r"'q3'.*q1, q2"):
        queues_of(known, ["q3"])


@pytest.mark.parametrize("library", ["gevent.monkey", "eventlet.patcher"])
@pytest.mark.parametrize("is_patched", [True, False])
def test_threads_that_are_not_pythons_are_refused(
    library: str, is_patched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stands_in = SimpleNamespace(
        is_module_patched=lambda name: is_patched, is_monkey_patched=lambda name: is_patched
    )
    monkeypatch.setitem(sys.modules, library, stands_in)
    if is_patched:
        with pytest.raises(ModuleLoadError, match=library.partition(".")[0]):
            check_threads()
    else:
        check_threads()
