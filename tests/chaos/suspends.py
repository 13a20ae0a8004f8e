"""What handlers remember and wait for: a result is stored once and stays, a wait is over once.

Owns one fold over `jobs.events`, in log order. Refuses to know how the engine keeps results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from tests.chaos.jobfold import JobId, Step, Trace
from tests.chaos.legal import TERMINAL
from tests.chaos.report import Report

SUSPENSIONS_MAX: Final = 10_001  # of a run: the last one ends it


@dataclass(frozen=True, slots=True)
class Wait:
    """A suspension that is not over."""

    name: str
    kind: str
    due_at: str | None


class SuspensionFold:
    """Steps and waits of each job. Feed it behind `JobFold`."""

    def __init__(self, report: Report, tells_steps: Iterable[str] = ()) -> None:
        self.report = report
        self.tells_steps = frozenset(tells_steps)  # types whose result has what steps returned
        self.known: dict[JobId, dict[str, tuple[str, Any]]] = {}  # name -> kind, result
        self.waits: dict[JobId, Wait] = {}
        self.suspensions: Counter[tuple[JobId, int]] = Counter()  # by run
        self.resumed = 0
        self.signalled = 0
        self.steps = 0

    def feed(self, trace: Trace, step: Step, event: dict[str, Any]) -> None:
        """One step of any job."""
        match step.kind:
            case "step_completed":
                data = event["data"]
                self.steps += 1
                self._know(trace.key).setdefault(data["name"], (data["kind"], data["result"]))
            case "suspended":
                self._suspend(trace, step, event)
            case "resumed":
                self._resume(trace, step, event)
            case _ if trace.key in self.waits and step.after != "awaiting":
                self._go_on(trace, step)
        if step.kind == "succeeded" and trace.type in self.tells_steps:
            self._compare(trace, (event["data"] or {}).get("result"))
        if step.kind in TERMINAL and step.kind != "failed":
            self.known.pop(trace.key, None)

    def _know(self, key: JobId) -> dict[str, tuple[str, Any]]:
        return self.known.setdefault(key, {})

    def _suspend(self, trace: Trace, step: Step, event: dict[str, Any]) -> None:
        data, due_at = event["data"], event["due_at"]
        name = data["name"]
        # Of a gather the next run asks again, for what did not succeed.
        if name in self.known.get(trace.key, {}):
            self._break("asked_again", trace, f"{name!r} is remembered, and is waited for again")
        if due_at is None and data["kind"] == "sleep":
            self._break("no_due_instant", trace, f"sleep {name!r}")
        self.waits[trace.key] = Wait(name, data["kind"], due_at)
        group = (trace.key, step.run)
        self.suspensions[group] += 1
        if self.suspensions[group] > SUSPENSIONS_MAX:
            self._break("too_many_suspensions", trace, f"{self.suspensions[group]} in a run")

    def _resume(self, trace: Trace, step: Step, event: dict[str, Any]) -> None:
        data = event["data"]
        wait = self.waits.pop(trace.key, None)
        known = self._know(trace.key)
        self.resumed += 1
        self.signalled += data["kind"] == "signal"
        if wait is None:
            self._break("resumed_unasked", trace, f"nothing was waited for: {data}")
            return
        is_late = data["kind"] == "timed_out"  # no signal came
        kind = "signal" if is_late else data["kind"]
        if (data["name"], kind) != (wait.name, wait.kind):
            self._break("resumed_another", trace, f"{data} while it waits for {wait}")
        if wait.name in known:
            self._break("resumed_twice", trace, f"{wait.name!r} was over before")
        elif is_late and wait.due_at is None:
            self._break("no_due_instant", trace, f"{wait.name!r} has no time-out, and timed out")
        elif (wait.kind == "sleep" or is_late) and step.occurred_at < (wait.due_at or ""):
            self._break("resumed_early", trace, f"{wait.name!r} is due at {wait.due_at}")
        if wait.kind != "gather":
            known.setdefault(wait.name, (data["kind"], data.get("value")))

    def _go_on(self, trace: Trace, step: Step) -> None:
        wait = self.waits.pop(trace.key)
        if step.kind not in ("cancelled", "failed"):
            self._break("went_on_without", trace, f"{step.kind} while it waits for {wait}")

    def _compare(self, trace: Trace, result: Any) -> None:
        """What the handler got from steps and signals, perhaps attempts ago, is what was stored."""
        known = self.known.get(trace.key, {}).items()
        for kind, place in (("step", "steps"), ("signal", "signals")):
            told = result.get(place, {}) if isinstance(result, dict) else {}
            kept = {name: value for name, (of, value) in known if of == kind}
            if told != kept:
                self._break(f"{kind}_changed", trace, f"stored is {kept}, its handler got {told}")

    def finish(self) -> None:
        """When all has ended: each wait is over."""
        for key, wait in self.waits.items():
            self.report.violate("never_resumed", f"{key} waits for {wait}")

    def _break(self, kind: str, trace: Trace, message: str) -> None:
        self.report.violate(kind, f"{trace.key}: {message}", trace.story())
