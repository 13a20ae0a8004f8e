"""A seeded schedule of faults: which process, what happens to it, when.

Owns the schedule and its carrying out. Refuses to know what a process does.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, Literal

from tests.chaos.engine import LEDGERS, STACK, WORKERS, Engine, EngineFailed

STOPPED_SECONDS: Final = 15.0  # longer than the session and the transaction time-outs of 10 s
BROKER_AWAY_SECONDS: Final = 3.0
GAP_SECONDS: Final = 4.0  # between two faults, at least: each shall meet a working engine

What = Literal["kill", "stop", "broker", "outage"]


@dataclass(frozen=True, slots=True)
class Fault:
    """At `at` seconds after the start, `what` happens to `role`, for `seconds` where it lasts."""

    at: float
    what: What
    role: str
    seconds: float = 0.0


def schedule(
    *, kills: int, seconds: float, seed: int, with_history: bool = True,
    outage_seconds: float = 0.0,
) -> list[Fault]:
    """`kills` kill -9 over the roles, a stopped ledger, a stopped worker, a killed broker."""
    random = Random(seed)
    targets = [*LEDGERS, *WORKERS] + ([STACK] if with_history else [])
    # Each role at least once, then by chance; the ledger twice as often, it has most to lose.
    roles = random.sample(targets, len(targets))[:kills]
    while len(roles) < kills:
        roles.append(random.choice([*targets, *LEDGERS]))
    faults: list[tuple[What, str, float]] = [("kill", role, 0.0) for role in roles]
    faults.append(("stop", random.choice(LEDGERS), STOPPED_SECONDS))
    faults.append(("stop", random.choice(WORKERS), STOPPED_SECONDS))
    faults.append(("broker", "broker", BROKER_AWAY_SECONDS))
    random.shuffle(faults)
    step = max(GAP_SECONDS, seconds / (len(faults) + 1))
    planned = [
        Fault(step * (n + 0.5) + random.uniform(0, step * 0.5), what, role, lasting)
        for n, (what, role, lasting) in enumerate(faults)
    ]
    if outage_seconds:
        planned.append(Fault(step * 0.25, "outage", STACK, outage_seconds))
    return sorted(planned, key=lambda fault: fault.at)


class FaultRunner(threading.Thread):
    """Carries out a schedule against an engine; `join` it, then look at `error`."""

    def __init__(
        self, engine: Engine, faults: list[Fault], say: Callable[[str], None] = print
    ) -> None:
        super().__init__(name="faults")
        self.error: EngineFailed | None = None
        self.done: list[Fault] = []
        self._engine, self._faults, self._say = engine, faults, say
        self._lasting: list[threading.Thread] = []
        self._stopped: set[str] = set()

    def run(self) -> None:
        """One fault after another; what lasts goes on beside the next ones."""
        begun = time.monotonic()
        last_end, last_at = begun, 0.0
        try:
            for fault in self._faults:
                # The schedule is what this waits for: time is the input here, not a hope. A slow
                # restart of the broker moves what comes after it.
                gap = min(GAP_SECONDS, fault.at - last_at)
                time.sleep(max(begun + fault.at - time.monotonic(),
                               last_end + gap - time.monotonic(), 0.0))
                self._engine.check_health()
                self._say(f"{time.monotonic() - begun:6.1f} s  {fault.what} {fault.role}")
                self._carry_out(fault)
                self.done.append(fault)
                last_end, last_at = time.monotonic(), fault.at
        except EngineFailed as error:
            self.error = error
        for thread in self._lasting:
            thread.join()

    def _carry_out(self, fault: Fault) -> None:
        match fault.what:
            case "kill":
                self._engine.roles[self._victim(fault.role)].kill()
            case "stop":
                self._last(self._stop_and_continue, fault)
            case "broker":
                self._engine.broker.kill()
                time.sleep(fault.seconds)
                self._engine.broker.start()
            case "outage":
                self._last(self._hold_down, fault)

    def _last(self, target: Callable[[Fault], None], fault: Fault) -> None:
        thread = threading.Thread(target=target, args=(fault,), name=f"lasting-{fault.role}")
        thread.start()
        self._lasting.append(thread)

    def _stop_and_continue(self, fault: Fault) -> None:
        role = self._engine.roles[fault.role]
        self._stopped.add(fault.role)
        role.send(signal.SIGSTOP)
        time.sleep(fault.seconds)
        role.send(signal.SIGCONT)
        self._stopped.discard(fault.role)

    def _victim(self, role: str) -> str:
        """Who dies: another one, when this one is down already or is to come back as a zombie."""
        if role in self._engine.held:
            role = WORKERS[0]
        if role not in self._stopped:
            return role
        names = [name for name in self._engine.roles if name.startswith(role.split("-")[0])]
        return names[(names.index(role) + 1) % len(names)]

    def _hold_down(self, fault: Fault) -> None:
        self._engine.held.add(fault.role)
        self._engine.roles[fault.role].kill()
        time.sleep(fault.seconds)
        self._engine.held.discard(fault.role)
