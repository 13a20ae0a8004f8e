"""Eight known bugs put back into a scratch copy of the source: the checker must catch each.

Owns the patches, as text that must be found exactly once. Refuses to guess: when the source has
moved, it says which patch has to be written anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.chaos.faults import Fault

COPIED: Final = ("schemas", "streams", "agents", "tidemill", "tests")


class MutationMoved(RuntimeError):
    """A patch does not fit the source any more: write it anew, the bug must stay testable."""


@dataclass(frozen=True, slots=True)
class Patch:
    """In `path`, `old` stands exactly once and becomes `new`."""

    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutation:
    """A known bug, the faults under which it bites, and the violations of which one must show."""

    name: str
    meaning: str
    patches: tuple[Patch, ...]
    faults: tuple[Fault, ...]
    caught_by: frozenset[str]
    jobs: int = 6_000
    seconds: float = 30.0
    # Runs at most. A kill bites only within the milliseconds between an early commit and its
    # transaction, which a quick machine makes rare; a clean engine is clean in all runs.
    tries: int = 1


_KILLS: Final = tuple(
    Fault(4.0 + 2.5 * n, "kill", f"ledger-{n % 2}") for n in range(9)
)

MUTATIONS: Final[tuple[Mutation, ...]] = (
    Mutation(
        "early_ack",
        "an input counts as applied when it arrives, not when its transaction is committed",
        (
            Patch(
                "agents/ledger/runner.py",
                "        self._inbox_of(chunk).append(chunk)\n",
                "        self._inbox_of(chunk).append(chunk)\n        chunk.ack()\n",
            ),
            Patch(
                "agents/runtime/app.py",
                "        return table.store.applied_positions(homes)\n",
                "        return None\n",
            ),
        ),
        _KILLS,
        frozenset({"acknowledged_and_lost", "input_lost", "never_ended"}),
        jobs=40_000,
        seconds=22.0,
        tries=4,
    ),
    Mutation(
        "no_fence",
        "who takes a partition over does not fence the process that wrote it before",
        (
            Patch(
                "agents/ledger/claim.py",
                "        await asyncio.gather(*map(self._fence, others))\n",
                "        logger.debug(others)\n",
            ),
        ),
        # At a low rate, so that a process is stopped between two transactions: one that is open
        # outlasts its time-out and ends the process before it can do harm.
        (
            Fault(5.0, "stop", "ledger-0", 15.0), Fault(24.0, "stop", "ledger-1", 15.0),
            Fault(43.0, "stop", "ledger-0", 15.0),
        ),
        frozenset({"sequence_fork", "two_ends", "after_the_end", "event_id_twice",
                   "input_decided_twice", "row_disagrees", "broken_chain"}),
        jobs=3_000,
        seconds=64.0,
    ),
    Mutation(
        "position_left_out",
        "the applied positions are not written in the transaction",
        (
            Patch(
                "streams/store/state.py",
                "        self._position.write(pages)\n",
                "",
            ),
        ),
        _KILLS[:3],
        frozenset({"input_decided_twice", "event_id_twice", "sequence_fork"}),
        jobs=3_000,
        seconds=15.0,
    ),
    Mutation(
        "step_forgotten",
        "of a step's result no row is written, so a new owner does not know it",
        (
            Patch(
                "streams/store/memory.py",
                "        self.put((job.key[0], job.key[1], name), entry)\n",
                "        self.follow((job.key[0], job.key[1], name), entry)\n",
            ),
        ),
        _KILLS[:3],
        frozenset({"step_changed", "remembered_twice", "memory_disagrees"}),
        jobs=3_000,
        seconds=15.0,
    ),
    Mutation(
        "resumed_again",
        "what a sleep was is not remembered, so its handler sleeps again",
        (
            Patch(
                "streams/decision.py",
                "    EventKind.RESUMED: (Effect.REMEMBER, Effect.MAKE_READY),\n",
                "    EventKind.RESUMED: (Effect.MAKE_READY,),\n",
            ),
        ),
        (),
        frozenset({"asked_again", "resumed_twice"}),
        jobs=600,
        seconds=5.0,
    ),
    Mutation(
        "instant_again",
        "a schedule's row says its last instant, so a new owner asks for that tick again",
        (
            Patch(
                "streams/schedules/table.py",
                '            "next": value.next_ms, ',
                '            "next": value.next_ms and value.last_ms, ',
            ),
        ),
        _KILLS[:4],
        frozenset({"tick_asked_twice", "tick_twice", "tick_invented"}),
        jobs=3_000,
        seconds=18.0,
    ),
    Mutation(
        "member_too_many",
        "a gather releases one member more at once than its handler allowed",
        (
            Patch(
                "streams/gathers/parent.py",
                "        room = min(header.parallel - gather.live, at_most)\n",
                "        room = min(header.parallel + 1 - gather.live, at_most)\n",
            ),
        ),
        (),
        frozenset({"too_many_members"}),
        jobs=2_000,
        seconds=8.0,
    ),
    Mutation(
        "signal_lost",
        "a signal that comes before its wait is told as kept, and is not",
        (Patch("streams/processor.py", "            signals.keep(kept)\n", ""),),
        (),
        frozenset({"kept_signal_lost", "kept_signal_disagrees"}),
        jobs=3_000,
        seconds=10.0,
    ),
)


def scratch_copy(source: Path, target: Path, patches: Sequence[Patch]) -> Path:
    """A copy of the tree with the patches applied; raises MutationMoved when one does not fit."""
    for name in COPIED:
        shutil.copytree(
            source / name, target / name, symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    shutil.copy(source / "pyproject.toml", target)
    for patch in patches:
        file = target / patch.path
        text = file.read_text()
        if (count := text.count(patch.old)) != 1:
            raise MutationMoved(
                f"{patch.path} has {count} times:\n{patch.old}\nwrite this mutation anew"
            )
        file.write_text(text.replace(patch.old, patch.new))
    return target
