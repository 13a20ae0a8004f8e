"""What people ask of a schedule: set, remove, pause, resume, run, backfill.

Owns what each of these words does to a row. Refuses to know how a command travels. The answer is
the record on jobs.schedules with the command's id; a schedule that nobody knows has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidemill.schemas.schedules import BACKFILL_MAX, ScheduleCommand
from tidemill.streams.occurrences.plan import between
from tidemill.streams.schedules.table import ScheduleRow
from tidemill.streams.schedules.tick import Tick
from tidemill.streams.schedules.ticking import Ticking

if TYPE_CHECKING:
    from tidemill.streams.turn import Turn

UNKNOWN: Final = "there is no schedule of this name; `tidemill schedules list` shows them"
IN_THE_CODE: Final = (
    "it is in the code of its workers: take it out there, or pause it; settings that were set by "
    "command are removed first"
)


def obey(ticking: Ticking, turn: Turn, command: ScheduleCommand) -> str | None:
    """Does it. Why it cannot be done, where there is no schedule to tell that of."""
    ticking.fire_due(turn, command.name)  # by the plan that it was due by
    row = ticking.table.get(command.name)
    if row is None:
        if command.word != "set":
            return UNKNOWN
        row = ScheduleRow(command.name, turn.now_ms)
        refused = _set(ticking, turn, row, command)
        if refused is None:
            ticking.put(turn, row)
        return refused
    if row.command_id == command.command_id:
        return None  # the same record again
    new = row.copy()
    refused = _changed(ticking, turn, new, command)
    if refused is not None:
        _refuse(ticking, turn, row, command, refused)
    elif new.spec is None:
        ticking.drop(turn, new.name)
    else:
        ticking.put(turn, new)
    return None


def _refuse(
    ticking: Ticking, turn: Turn, row: ScheduleRow, command: ScheduleCommand, why: str
) -> None:
    new = row.copy()
    new.refused, new.command_id, new.actor = why, command.command_id, command.actor
    new.revision += 1
    ticking.put(turn, new)


def _changed(
    ticking: Ticking, turn: Turn, new: ScheduleRow, command: ScheduleCommand
) -> str | None:
    """Changes the copy of a row, or says why not."""
    now_ms = turn.now_ms
    word = command.word
    if word == "set":
        return _set(ticking, turn, new, command)
    if word == "remove":
        return _remove(ticking, turn, new, command)
    if word == "pause":
        if new.is_paused:
            return "it is paused already"
        new.is_paused = True
        ticking.change(new, "paused", now_ms, command)
        return None
    if word == "resume":
        if not new.is_paused:
            return "it is not paused"
        new.is_paused = False
        new.last_ms = max(new.last_ms, now_ms)
        ticking.change(new, "resumed", now_ms, command)
        return None
    return _ticks(ticking, turn, new, command)


def _set(
    ticking: Ticking, turn: Turn, new: ScheduleRow, command: ScheduleCommand
) -> str | None:
    spec = command.spec
    if spec is None or (spec.every_ms is None) == (spec.cron is None):
        return "set needs a spec, and in it either every_ms or cron"
    is_new = new.spec is None
    new.live = spec
    if ticking.plan_of(new) is None:
        return new.problem or "its plan cannot be reckoned"
    if not is_new:
        new.last_ms = max(new.last_ms, turn.now_ms)
    ticking.change(new, "set", turn.now_ms, command)
    return None


def _remove(
    ticking: Ticking, turn: Turn, new: ScheduleRow, command: ScheduleCommand
) -> str | None:
    was_live = new.live is not None
    new.live = None
    if not new.code or new.is_orphaned:
        new.code = ()  # it is gone
        return None
    if not was_live:
        return IN_THE_CODE
    new.last_ms = max(new.last_ms, turn.now_ms)
    ticking.change(new, "settings removed", turn.now_ms, command)
    return None


def _ticks(
    ticking: Ticking, turn: Turn, new: ScheduleRow, command: ScheduleCommand
) -> str | None:
    """Ticks that somebody asks for: their ids end with the command's."""
    spec, now_ms = new.spec, turn.now_ms
    if spec is None:
        return UNKNOWN
    if command.word == "run":
        at = command.at
        instants = [now_ms if at is None else int(at.timestamp() * 1000)]
    else:
        found = _range(ticking, turn, new, command)
        if isinstance(found, str):
            return found
        instants = found
    what = "run now" if command.word == "run" else f"backfill of {len(instants)}"
    new.note(what, now_ms, command)  # it moves no instant
    is_backfill, suffix = command.word == "backfill", f"!{command.command_id}"
    for instant in instants:
        ticking.ask(turn, new, spec, Tick(instant, now_ms, None, is_backfill, suffix=suffix))
    return None


def _range(
    ticking: Ticking, turn: Turn, new: ScheduleRow, command: ScheduleCommand
) -> list[int] | str:
    since, until = command.since, command.until
    if since is None or until is None:
        return "backfill needs since and until"
    since_ms, until_ms = int(since.timestamp() * 1000), int(until.timestamp() * 1000)
    if not since_ms < until_ms <= turn.now_ms:
        return "backfill: since must be before until, and until must be past"
    plan = ticking.plan_of(new)
    if plan is None:
        return new.problem or "its plan cannot be reckoned"
    found = between(plan, since_ms, until_ms, at_most=BACKFILL_MAX + 1)
    if len(found) > BACKFILL_MAX:
        return f"the range has more than {BACKFILL_MAX} ticks; take a shorter one"
    return found or "the range has no tick"
