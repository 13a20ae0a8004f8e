"""Folder, umask and locale that a handler changes for its whole process: told of, put back where
that is safe."""

from __future__ import annotations

import locale
import logging
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.worker_harness import bench_of, pack_of, until
from tidemill.agents.worker import process_lane
from tidemill.agents.worker.surroundings import Surroundings

SECONDS = 60.0  # a process that starts on a busy machine
WORDS = "C" if locale.setlocale(locale.LC_ALL) != "C" else "C.UTF-8"
CHILDS = '''
import locale, os
from tidemill import job

@job("look", process=True)
def look(payload):
    mask = os.umask(0)
    os.umask(mask)
    found = [os.getcwd(), locale.setlocale(locale.LC_ALL), mask, os.getpid()]
    if payload.get("change"):
        os.chdir("/")
        os.umask(0o777)
        locale.setlocale(locale.LC_ALL, payload["words"])
    return found
'''


def look(payload: dict[str, Any]) -> None: ...


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    words, mask = locale.setlocale(locale.LC_ALL), os.umask(0o022)
    yield
    locale.setlocale(locale.LC_ALL, words)
    os.umask(mask)


def umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def change(what: str) -> None:
    if what == "working folder":
        os.chdir("/")
    elif what == "locale":
        locale.setlocale(locale.LC_ALL, WORDS)
    else:
        os.umask(0o777)


@pytest.mark.parametrize("what", ["working folder", "locale", "umask"])
def test_alone_it_is_put_back_each_time_and_told_of_once(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = (os.getcwd(), locale.setlocale(locale.LC_ALL), umask())
    surroundings = Surroundings(has_others=False)
    for _ in range(3):
        change(what)
        surroundings.look(lambda: "by mail.send")
        assert (os.getcwd(), locale.setlocale(locale.LC_ALL), umask()) == before
    [line] = [each for each in caplog.messages if f"the {what} of this process" in each]
    assert "mail.send" in line


@pytest.mark.parametrize("what", ["working folder", "locale"])
def test_beside_others_it_stays_and_is_told_of_once(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    surroundings = Surroundings(has_others=True)
    change(what)
    after = (os.getcwd(), locale.setlocale(locale.LC_ALL))
    for _ in range(3):
        surroundings.look(lambda: "began last: mail.send")
    assert (os.getcwd(), locale.setlocale(locale.LC_ALL)) == after
    assert len([each for each in caplog.messages if f"the {what} of this process" in each]) == 1


def close_streams(numbers: tuple[int, ...], told: Path) -> None:
    """Runs in a process of its own: threads of this one could get the numbers."""
    logging.basicConfig(filename=told)
    surroundings = Surroundings(has_others=True)
    for _ in range(2):
        for number in numbers:
            os.close(number)
        # A line to a child that starts before anybody has looked.
        ours, theirs = process_lane._pair()
        assert min(ours.fileno(), theirs) > 2
        ours.close()
        os.close(theirs)
        surroundings.look(lambda: "began last: mail.send")
        for number in numbers:
            assert os.get_inheritable(number)
            os.fstat(number)


@pytest.mark.parametrize("numbers", [(1,), (0, 2), (0, 1, 2)])
def test_nothing_gets_the_number_of_a_stream_that_was_closed(
    numbers: tuple[int, ...], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    process = multiprocessing.get_context("spawn").Process(
        target=close_streams, args=(numbers, told)
    )
    process.start()
    process.join(SECONDS)
    assert process.exitcode == 0, told.read_text()
    [line] = [each for each in told.read_text().splitlines() if "has closed descriptor" in each]
    assert " and ".join(map(str, numbers)) in line


def test_nothing_hangs_on_a_look_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    surroundings = Surroundings(has_others=True)
    with monkeypatch.context() as replaced:
        replaced.setattr(locale, "setlocale", None)
        for _ in range(2):
            surroundings.look(lambda: "began last: mail.send")
    assert len([each for each in caplog.messages if "nobody can see what jobs change" in each]) == 1


def test_a_folder_that_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    surroundings = Surroundings(has_others=False)
    os.chdir(gone)
    gone.rmdir()
    surroundings.look(lambda: "by t")
    assert os.getcwd() == str(tmp_path)
    assert "one that is removed" in caplog.text


async def test_the_worker_names_those_that_began_last(caplog: pytest.LogCaptureFixture) -> None:
    async def wanders(payload: dict[str, Any]) -> None:
        os.chdir("/")

    async with bench_of(wanders) as bench:
        bench.take(pack_of(("wanders", {})))
        await bench.last()
        await until(lambda: "the working folder of this process" in caplog.text)
    assert "began last: wanders" in caplog.text


async def test_the_next_job_of_a_child_meets_what_the_first_one_met(tmp_path: Path) -> None:
    module = tmp_path / "changes_its_process.py"
    module.write_text(CHILDS)
    async with bench_of(look, process=True, modules=[str(module)]) as bench:
        found: list[Any] = []
        await bench.until_free()
        for _ in range(3):
            bench.take(pack_of(("look", {"change": True, "words": WORDS})))
            await until(lambda: len(bench.outcomes) > len(found))
            found.append(bench.outcomes[-1]["result"])
    assert found[0] == found[1] == found[2]  # the same process, too
    assert found[0][0] == str(tmp_path)
