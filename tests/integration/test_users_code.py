"""What users' code does to its process, against one running worker; the test plays the ledger.

Owns the proof that a worker goes on as it was: forks, stdin, folders, logging, signals, locale.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.integration.test_worker import (  # noqa: F401  # fixtures
    SECONDS,
    Ledger,
    Start,
    ledger,
    start,
    topics,
)
from tests.unit.freezing import AT
from tests.waiting import wait_until
from tidemill.schemas.topics import Topics

JOBS = Path(__file__).with_name("users_code_jobs.py")
HOW = ("multiprocessing", "fork", "preexec", "popen")
BACK = {"enqueue": 9, "progress": 9, "raise": 143, "exit": 7, "return": 143}

pytestmark = pytest.mark.timeout(180)


def test_users_code_takes_nothing_from_its_worker(
    kafka: str, topics: Topics, ledger: Ledger, start: Start  # noqa: F811
) -> None:
    worker = start(jobs=JOBS, processes=1, threads=4).wait_ready()
    pid = worker.popen.pid

    def result(job_id: str) -> object:
        end = ledger.last(job_id, worker.told)
        assert end["kind"] == "succeeded", end
        return end.get("result")

    # 1. Helpers that are ended end, by the signal; the worker does not hear of it.
    for kind in ("fork.thread", "fork.async"):
        for job_id in ledger.dispatch(*((kind, {"how": how}) for how in HOW)):
            assert result(job_id) == -signal.SIGTERM
    for job_id in ledger.dispatch(*(("fork.process", {"how": how}) for how in HOW), queue="heavy"):
        assert result(job_id) == -signal.SIGTERM
    for kind, queue in (("fork.thread", "default"), ("fork.process", "heavy")):
        [job_id] = ledger.dispatch((kind, {"how": "interrupt"}), queue=queue)
        assert result(job_id) == -signal.SIGINT
    # 2. A copy that comes back ends, and its context says that nobody hears it.
    for kind in ("copy.thread", "copy.async"):
        ids = ledger.dispatch(*((kind, {"how": how}) for how in BACK))
        assert [result(job_id) for job_id in ids] == list(BACK.values())
    [in_task] = ledger.dispatch(("copy.task", {"how": "return"}))
    assert result(in_task) == 143
    # 3. What is global in the process.
    for kind, queue in (("change.thread", "default"), ("change.process", "heavy")):
        for how, expected in (
            ("read_stdin", ""), ("open_files", []), ("change_folder", "/"),
            ("silence_logging", "silent"), ("double_logging", "doubled"),
            ("use_processes_on_a_loop", 0), ("change_others", "changed"), ("freeze_time", AT),
            ("break_logging", "broken"), ("throw_at_threads", "thrown"),
        ):
            [job_id] = ledger.dispatch((kind, {"how": how}), queue=queue)
            assert (how, result(job_id)) == (how, expected)
    # 4. Afterwards the worker tells its lines once, runs jobs of every kind, and knows words.
    [faulty] = ledger.dispatch(("fault", {"word": "once-only"}))
    assert ledger.last(faulty, worker.told)["error"]["code"] == "HANDLER_ERROR"
    wait_until(lambda: "once-only" in worker.log.read_text(), SECONDS, worker.told)
    assert worker.log.read_text().count("ValueError: seen in the log once-only") == 1
    [grouped] = ledger.dispatch(("group", {}))
    error = ledger.last(grouped, worker.told)["error"]
    assert (error["code"], error["retryable"]) == ("CARD_UNKNOWN", False)
    [travelled] = ledger.dispatch(("travel", {"orderId": "a"}))
    end = ledger.last(travelled, worker.told)
    assert end["result"] == {"order": {"orderId": "a"}, "price": "1.50", "seen": ["x"]}
    assert end["children"][0]["payload"] == {"orderId": "a"}
    # 5. Its signals are its own again within a second, and it stops in good order.
    [taken] = ledger.dispatch(("signals.async", {}))
    assert result(taken) == "taken"
    wait_until(lambda: "SIGTERM was taken" in worker.log.read_text(), SECONDS, worker.told)
    assert (worker.popen.poll(), worker.popen.pid) == (None, pid)
    assert worker.stop() == 0, worker.told()
