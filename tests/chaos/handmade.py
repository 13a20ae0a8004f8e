"""Hand-made logs: a small correct history that a test can bend in one place.

Owns the shape of the public records as a stranger would write them down. Used by the checker's
own tests only.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from tests.chaos.checker import Checker, Evidence, Expectations
from tests.chaos.ledger_rows import digest_of
from tests.chaos.legal import TERMINAL
from tests.chaos.rawlog import RawRecord
from tests.chaos.receipts import Receipt
from tests.chaos.report import Report

START_MS: Final = 1_700_000_000_000
Body = dict[str, Any]


def instant(ms: int) -> str:
    """Epoch milliseconds as the engine writes them."""
    moment = datetime.fromtimestamp((START_MS + ms) / 1000, tz=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{(START_MS + ms) % 1000:03d}Z"


class History:
    """A log of one partition under construction: `ask` and `tell` append what belongs together."""

    def __init__(self) -> None:
        self.events: list[Body] = []
        self.completed: list[Body] = []
        self.dead: list[RawRecord] = []
        self.requested: list[RawRecord] = []
        self.receipts: list[Receipt] = []
        self.internal: list[RawRecord] = []
        self.sent = 0  # messages of the one partition, to itself
        self.rows: dict[bytes, bytes] = {}
        self.cancels: dict[tuple[str, str], list[Any]] = {}
        self.signals: dict[tuple[str, str], list[Any]] = {}
        self.memory: dict[tuple[str, str], list[Any]] = {}
        self.expectations = Expectations()
        self.now_ms = 0
        self._last: dict[tuple[str, str], Body] = {}
        self._runs: dict[tuple[str, str], int] = defaultdict(lambda: 1)

    def ask(self, user: str, job: str | None, kind: str = "job", **fields: Any) -> int:
        """One acknowledged record of jobs.requested; gives its offset."""
        offset = len(self.requested)
        value = json.dumps({"user_id": user, "job_id": job}).encode()
        self.requested.append(
            RawRecord("jobs.requested", 0, offset, START_MS, user.encode(), value, (("h", b"1"),))
        )
        known = {"user_id": user, "job_id": job} if kind == "job" else {}
        self.receipts.append(Receipt(0, offset, kind=kind, **known, **fields))  # type: ignore[arg-type]
        return offset

    def tell(
        self, user: str, job: str, kind: str, after: str, *, type: str = "t",
        cause: int | Body | None = None, **fields: Any,
    ) -> Body:
        """One event that follows the job's last one; `fields` bend it."""
        key = (user, job)
        last = self._last.get(key)
        begins = kind == "dispatched"
        event = {
            "schema_version": 1, "event": kind, "job_id": job, "user_id": user, "type": type,
            "queue": "default", "priority": "medium", "incarnation": START_MS, "run": 1,
            "sequence": 1 if last is None else last["sequence"] + 1,
            "attempt": 0 if last is None else last["attempt"] + begins,
            "epoch": 0 if last is None else last["epoch"] + begins,
            "occurred_at": instant(self.now_ms),
            "state_before": None if last is None else last["state_after"],
            "state_after": after, "reason": None, "error": None, "worker_id": None,
            "due_at": None, "wait_ms": None, "run_ms": None, "cause": None, "data": None,
        }
        if isinstance(cause, int):
            cause = {"topic": "jobs.requested", "partition": 0, "offset": cause}
        event["cause"] = cause
        event |= fields
        event["event_id"] = f"{user}/{job}/{START_MS}/{event['sequence']}/{len(self.events)}"
        self.events.append(event)
        if event["sequence"] is not None:
            self._last[key] = event
        if kind in TERMINAL:
            self._end(event)
        return event

    def keep(self, user: str, job: str, offset: int, event: str = "cancel_kept") -> None:
        """A cancel of a job that nobody has asked for is kept, or forgotten."""
        place = {"topic": "jobs.commands", "partition": 0, "offset": offset}
        told: Body = {"sequence": None, "state_before": None, "incarnation": 0, "run": 0}
        self.tell(user, job, event, "", type="", cause=place, **told)
        self.events[-1]["state_after"] = None
        if event == "cancel_kept":
            self.cancels[(user, job)] = [1, user, job, START_MS, None, None, *place.values()]
        else:
            self.cancels.pop((user, job), None)

    def note_signal(
        self, user: str, job: str, offset: int, event: str = "signal_kept",
        reason: str | None = None,
    ) -> None:
        """The signal `go` of that command is kept, forgotten or refused."""
        place = {"topic": "jobs.commands", "partition": 0, "offset": offset}
        last = self._last.get((user, job))
        told: Body = {"sequence": None, "reason": reason}
        if last is None:
            told |= {"incarnation": 0, "run": 0, "type": ""}
        data = {"name": "go", "kind": "signal", "value": 1, "actor": None}
        state = None if last is None else last["state_after"]
        self.tell(user, job, event, state or "", cause=place, data=data, **told)
        self.events[-1]["state_after"] = state
        if event == "signal_kept":
            self.signals[(user, job)] = [1, user, job, "go", START_MS, None, *place.values(), 1]
        elif reason in ("not_awaited", "unknown_job"):
            self.signals.pop((user, job), None)

    def wait(self, user: str, job: str, due_at: str | None = None) -> None:
        """The handler of a dispatched job waits for `go`."""
        data = {"name": "go", "kind": "signal"}
        self.tell(user, job, "suspended", "awaiting", data=data, due_at=due_at)

    def resume(self, user: str, job: str, offset: int | None, kind: str = "signal") -> None:
        """It goes on: with the signal of that command, or late."""
        data: Body = {"name": "go", "kind": kind}
        cause = None
        if offset is not None:
            data |= {"value": 1, "actor": None}
            cause = {"topic": "jobs.commands", "partition": 0, "offset": offset}
        self.tell(user, job, "resumed", "pending", data=data, cause=cause)
        self.signals.pop((user, job), None)
        self.memory[(user, job)] = [1, user, job, START_MS, ["go", kind, data.get("value")]]

    def _end(self, event: Body) -> None:
        body = {
            name: event[name]
            for name in ("job_id", "user_id", "type", "run", "sequence", "reason", "error")
        }
        body |= {"status": event["event"], "attempts": event["attempt"]}
        body["ce_id"] = event["event_id"]
        self.completed.append(body)
        if event["event"] == "failed":
            self.dead_letter("attempt", user_id=event["user_id"], job_id=event["job_id"])

    def run(self, user: str, job: str, *, type: str = "t", **asked: Any) -> None:
        """A request and a quick job that succeeds."""
        cause = self.ask(user, job, **asked)
        self.tell(user, job, "requested", "pending", type=type, cause=cause)
        self.tell(user, job, "dispatched", "dispatched", type=type)
        self.finish(user, job, type=type)

    def finish(self, user: str, job: str, *, type: str = "t") -> None:
        """The end of a dispatched job."""
        self.tell(user, job, "attempt_succeeded", "running", type=type)
        self.tell(user, job, "succeeded", "succeeded", type=type)

    def forward(self, offset: int, **bent: Any) -> None:
        """The request at `offset` came to another partition and was sent on."""
        was = self.requested[offset]
        envelope = (
            ("tidemill-origin", f"jobs.requested/0/{offset}".encode()),
            ("tidemill-kind", b"request"),
        )
        fields = {"key": was.key, "value": was.value, "headers": was.headers} | bent
        self._internal(fields["key"], fields["value"], (*fields["headers"], *envelope))

    def say(self, number: int | None = None) -> None:
        """A message, the next one unless it has another number."""
        self.sent += 1
        told = f"jobs.internal/0/{number or self.sent}".encode()
        self._internal(
            None, b"{}", (("tidemill-origin", told), ("tidemill-kind", b"message"))
        )

    def _internal(
        self, key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes | None], ...]
    ) -> None:
        offset = len(self.internal)
        self.internal.append(
            RawRecord("jobs.internal", 0, offset, START_MS, key, value, headers)
        )

    def dead_letter(self, stage: str, offset: int = 0, **headers: str) -> None:
        """A dead letter of the request at `offset`, as it was."""
        original = self.requested[offset]
        texts = {
            "topic": "jobs.requested", "partition": "0", "offset": str(offset), "stage": stage,
            "error.code": "UNDECODABLE", "error.message": "what to do", "timestamp": "1",
        } | headers
        extra = tuple((f"tidemill.dead.{name}", text.encode()) for name, text in texts.items())
        self.dead.append(
            RawRecord(
                "jobs.dead", 0, len(self.dead), START_MS, original.key, original.value,
                original.headers + extra,
            )
        )

    def write_rows(self) -> None:
        """The rows that these events give."""
        for (user, job), event in self._last.items():
            state, at = event["state_after"], event["occurred_at"]
            if state in TERMINAL and state != "failed":
                finished = round(datetime.fromisoformat(at).timestamp() * 1000)
                row: list[Any] = [-1, state, finished, 0, event["run"], event["sequence"]]
            else:
                row = [
                    1, state, event["sequence"], event["run"], event["attempt"], event["epoch"],
                    *[None] * 11, user, job, *[None] * 15,
                ]
            self.rows[b"j" + digest_of((user, job))] = json.dumps(row).encode()
        for key, cancel in self.cancels.items():
            if key not in self._last:
                self.rows[b"c" + digest_of(key)] = json.dumps(cancel).encode()
        for key, signal in self.signals.items():
            self.rows[b"e" + digest_of(key) + b"go"] = json.dumps(signal).encode()
        for key, known in self.memory.items():
            if self._last[key]["state_after"] not in TERMINAL - {"failed"}:
                self.rows[b"m" + digest_of(key) + b"go"] = json.dumps(known).encode()
        causes = [e["cause"]["offset"] for e in self.events if e["cause"] is not None]
        applied = {name: max(causes, default=-1) for name in ("jobs.requested", "jobs.commands")}
        applied["jobs.internal"] = len(self.internal) - 1
        position: Body = {"applied": applied, "clock": START_MS + self.now_ms}
        if self.sent:
            position["sent"] = self.sent
        self.rows[b"p"] = json.dumps(position).encode()

    def check(self, bend: Callable[[Evidence], None] | None = None) -> Report:
        """The checker's report over everything that was built."""
        evidence = Evidence(
            events=_records("jobs.events", self.events),
            completed=[
                RawRecord(
                    "jobs.completed", 0, n, START_MS, body["user_id"].encode(),
                    json.dumps({k: v for k, v in body.items() if k != "ce_id"}).encode(),
                    (("ce_id", body["ce_id"].encode()),),
                )
                for n, body in enumerate(self.completed)
            ],
            dead=self.dead,
            requested=self.requested,
            state=[
                RawRecord("tidemill-state", 0, n, START_MS, key, value)
                for n, (key, value) in enumerate(self.rows.items())
            ] if self.rows else None,
            internal=self.internal,
            receipts=self.receipts,
            expectations=self.expectations,
        )
        if bend is not None:
            bend(evidence)
        return Checker(evidence).check()


def _records(topic: str, bodies: list[Body]) -> list[RawRecord]:
    return [
        RawRecord(
            topic, 0, n, START_MS, body["user_id"].encode(), json.dumps(body).encode()
        )
        for n, body in enumerate(bodies)
    ]
