"""Gathers: each member is released once and ends once a run, and the parent is told what is true.

Owns one fold over `jobs.events` and the messages of the policy `gather` on `jobs.internal`, written
from docs/REFERENCE.md. Refuses to know any code of the engine.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from tests.chaos.jobfold import JobFold, JobId, Trace
from tests.chaos.rawlog import RawRecord
from tests.chaos.report import Report

POLICY: Final = b"gather"
GOOD: Final = frozenset({"succeeded", "skipped"})

Of = tuple[str, str, int, str, int]
"""Parent's user, job and incarnation, the gather's name, and the parent's run."""
Gather = tuple[str, str, int, str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a parent was told when it went on, and in which run."""

    run: int
    members: int
    failed: int
    is_tolerated: bool


class GatherFold:
    """Feed it all events, then all of `jobs.internal`; then `finish`."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.opened: dict[Of, dict[str, Any]] = {}
        self.verdicts: dict[Of, Verdict] = {}
        self._released: dict[Of, dict[int, int]] = defaultdict(dict)
        self._ended: dict[Of, dict[int, dict[str, Any]]] = defaultdict(dict)
        # By the parent's partition: (its number, gather, members) of what it sent, and (offset,
        # gather, members) of what was told to it.
        self._sent: dict[int, list[tuple[int, Of, int]]] = defaultdict(list)
        self._told: dict[int, list[tuple[int, Of, int]]] = defaultdict(list)

    def feed_event(self, trace: Trace, event: dict[str, Any]) -> None:
        """An event of a parent; of the others nothing is looked at."""
        kind = event["event"]
        if kind not in ("suspended", "resumed") or event["data"]["kind"] != "gather":
            return
        data = event["data"]
        of = (trace.user_id, trace.job_id, trace.incarnation, data["name"], event["run"])
        if kind == "suspended":
            self.opened.setdefault(of, data)
            return
        verdict = Verdict(event["run"], data["members"], data["failed"], data["is_tolerated"])
        if self.verdicts.setdefault(of, verdict) != verdict:
            self.report.violate("gather_told_two_ways", f"{of}: {verdict}", trace.story())

    def feed(self, record: RawRecord) -> None:
        """A record of `jobs.internal`."""
        headers = dict(record.headers)
        if headers.get("tidemill-policy") != POLICY or headers.get("tidemill-kind") != b"message":
            return
        body = orjson.loads(record.value or b"")
        user_id, job_id, incarnation, name, run = body["of"]
        of = (user_id, job_id, incarnation, name, run)
        if body["kind"] == "release":
            _, sender, number = (headers["tidemill-origin"] or b"").decode().split("/")
            self._sent[int(sender)].append((int(number), of, len(body["members"])))
            for index, *_ in body["members"]:
                if index in self._released[of]:
                    self.report.violate("member_released_twice", f"{of}[{index}]")
                self._released[of][index] = record.offset
        elif body["kind"] == "ends":
            self._told[record.partition].append((record.offset, of, len(body["ends"])))
            for index, end in body["ends"]:
                if index in self._ended[of]:
                    self.report.violate("member_ended_twice", f"{of}[{index}]: {end}")
                self._ended[of][index] = end

    def check_parallel(self, groups: Mapping[int, Sequence[tuple[int, int]]]) -> None:
        """At each position of a parent's partition no more members are released and not known ended
        than its handler allowed. `groups`: by partition, what each group had sent and applied."""
        most = 0
        for partition, positions in groups.items():
            sent = deque(sorted(self._sent.get(partition, ())))
            told = deque(sorted(self._told.get(partition, ())))
            out: Counter[Of] = Counter()
            for number, offset in positions:
                grown: set[Of] = set()
                while sent and sent[0][0] <= number:
                    _, of, members = sent.popleft()
                    out[of] += members
                    grown.add(of)
                while told and told[0][0] <= offset:
                    _, of, members = told.popleft()
                    out[of] -= members
                for of in grown:
                    most = max(most, out[of])
                    parallel = self.opened.get(of, {}).get("parallel")
                    if parallel is not None and out[of] > parallel:
                        self.report.violate(
                            "too_many_members", f"{of}: {out[of]} are out, allowed are {parallel}"
                        )
        self.report.checked["members at once"] = most

    def finish(self, jobs: JobFold) -> None:
        """All that was told fits together, and each end is that of its job."""
        for of, ends in self._ended.items():
            for index, end in ends.items():
                if index not in self._released.get(of, {}):
                    self.report.violate("member_invented", f"{of}[{index}]: {end}")
                self._check_end(of, index, end, jobs)
        for of, verdict in self.verdicts.items():
            self._check_verdict(of, verdict)
        self.report.checked["members"] = sum(map(len, self._ended.values()))

    def _check_end(self, of: Of, index: int, end: dict[str, Any], jobs: JobFold) -> None:
        """What was told of a run is what that run ended as. Refused requests have no job."""
        key: JobId = (end["user_id"], end["job_id"])
        trace = jobs.jobs.get(key)
        if trace is None or "sequence" not in end:
            return
        told = trace.end_of.get(end["run"])
        if told is None or (told["event"], told["sequence"]) != (end["status"], end["sequence"]):
            self.report.violate(
                "member_end_disagrees", f"{of}[{index}] was told {end}, its job {told}",
                trace.story(),
            )

    def _check_verdict(self, of: Of, verdict: Verdict) -> None:
        good = set()
        for (user_id, job_id, incarnation, name, run), ends in self._ended.items():
            if (user_id, job_id, incarnation, name) == of[:4] and run <= verdict.run:
                good |= {index for index, end in ends.items() if end["status"] in GOOD}
        failed = verdict.members - len(good)
        if failed != verdict.failed:
            self.report.violate(
                "gather_miscounted", f"{of}: told {verdict.failed} failed, there are {failed}"
            )
        wanted = self.opened.get(of, {})
        if verdict.is_tolerated != (failed <= _tolerated(wanted.get("tolerate"), verdict.members)):
            self.report.violate("gather_misjudged", f"{of}: {verdict}, asked {wanted}")
        known = len(self._ended.get(of, {}))
        released = len(self._released.get(of, {}))
        if released != known:
            self.report.violate(
                "gather_went_on_early", f"{of}: {released} released, {known} known ended"
            )


def _tolerated(tolerate: dict[str, Any] | None, members: int) -> int:
    asked = tolerate or {}
    if "share" in asked:
        share: float = asked["share"]
        return math.floor(share * members + 1e-9)
    count: int = asked.get("count", 0)
    return count
