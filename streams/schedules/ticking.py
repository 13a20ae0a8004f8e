"""The schedules at home in one partition: who announces them, when they are due, what that brings.

Owns the following of announcements and the firing of ticks. Refuses to know overlap
(`tidemill.streams.policies.schedules`) and the clock: the turn's instant never goes back.

Rules. Of two plans that living workers have at once, the one that was announced later rules, so
that a restart of old code wins nothing. A schedule is orphaned, and has no more ticks, once a
worker that had it lives without it and nobody has it, for ORPHAN_AFTER_MS; workers that are merely
down orphan nothing. The row's next instant fires whatever zone data say by then.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tidemill.schemas.codec import Refusal
from tidemill.schemas.schedules import USER_PREFIX, ScheduleCommand, ScheduleSpec
from tidemill.schemas.words import Reason
from tidemill.streams.occurrences.cron import Cron
from tidemill.streams.occurrences.due import Due, due
from tidemill.streams.occurrences.plan import ByCron, Count, Every, Plan, latest, next_after
from tidemill.streams.occurrences.zone import UTC, Zone
from tidemill.streams.partitioner import Partitioner
from tidemill.streams.policies.base import Verdict, skip
from tidemill.streams.schedules.announced import (
    NOTHING,
    Announced,
    is_left_out,
    source_of,
    specs_of,
)
from tidemill.streams.schedules.table import Known, ScheduleRow, ScheduleTable, told
from tidemill.streams.schedules.tick import Tick, request_of

if TYPE_CHECKING:
    from tidemill.streams.store.definitions import Definitions
    from tidemill.streams.turn import Turn

# ms: a tick that is later than this was missed, and `catch_up` says what becomes of it. One that
# is late by less runs, unless the next one is due as well.
GRACE_MS: Final = 60_000
# ms without anybody who has a schedule that some left out: a worker of several may restart.
ORPHAN_AFTER_MS: Final = 20_000
FOLLOWED_MAX: Final = 500  # schedules whose announcement is looked at in one group
PLANS_KEPT: Final = 8  # of a schedule, that nobody has now
NEVER: Final = 2**62  # ms; later than every instant
_MISSED: Final = skip(Reason.MISSED)


def only_utc(name: str) -> Zone:
    """Zones of a partition that was given none."""
    if name != "UTC":
        raise ValueError(f"zone={name!r} is not known here")
    return UTC


class Ticking:
    """The schedules of one partition."""

    def __init__(self, definitions: Definitions) -> None:
        self.table = ScheduleTable()
        self.zone_of: Callable[[str], Zone] = only_utc
        self.zone_data = ""  # the version of what `zone_of` reads
        self.has_more = False
        self._definitions = definitions
        self._number = 0
        self._partitioner = Partitioner(1)
        self._announced: Announced = NOTHING
        self._unseen: deque[str] = deque()  # names whose announcement is to be looked at
        self._untold: deque[str] = deque()  # names that are told again
        self._absent_since: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []
        self._is_stale = True
        self._plans: dict[str, tuple[ScheduleSpec, int, Plan]] = {}

    def settle(self, number: int, partitioner: Partitioner) -> None:
        """Which partition this is."""
        self._number = number
        self._partitioner = partitioner

    def set_zones(self, zone_of: Callable[[str], Zone], zone_data: str) -> None:
        """How a zone is read (it raises ValueError for a name it does not know), and its version.
        """
        self.zone_of = zone_of
        self.zone_data = zone_data

    def set_announced(self, announced: Announced) -> None:
        """What living workers announce by now."""
        if announced is not self._announced:
            self._announced = announced
            self._look_at_all()

    def clear(self) -> None:
        """After a restore or an undo: the index is made anew, announcements are looked at again.

        All schedules are told again: their topic may have been made anew since the last owner.
        """
        self._is_stale = True
        self._untold = deque(sorted(self.table.values))
        self._look_at_all()

    def next_at(self) -> int:
        """Epoch ms at which `work` has something to do."""
        if self._is_stale or self._unseen or self._untold:
            return 0
        orphan_at = min(self._absent_since.values(), default=NEVER) + ORPHAN_AFTER_MS
        return min(self._heap[0][0] if self._heap else NEVER, orphan_at)

    # --- a group ---

    def work(self, turn: Turn, at_most: int) -> int:
        """What announcements and time bring, about so many decisions; how many they were."""
        if self._is_stale:
            self._rebuild()
        now_ms = turn.now_ms
        for _ in range(min(FOLLOWED_MAX, len(self._untold))):
            self._tell_again(turn, self._untold.popleft())
        # What was due before a plan changed is dealt with by the plan that it was due by.
        spent = self._fire_due(turn, at_most)
        for _ in range(min(FOLLOWED_MAX, len(self._unseen))):
            name = self._unseen.popleft()
            if self.is_due(name, now_ms):
                self._unseen.append(name)
            else:
                self._follow(turn, name, now_ms)
        self._orphan_absent(turn, now_ms)
        spent += self._fire_due(turn, at_most - spent)
        is_due = bool(self._heap) and self._heap[0][0] <= now_ms
        self.has_more = is_due or bool(self._unseen) or bool(self._untold)
        return spent

    def _fire_due(self, turn: Turn, at_most: int) -> int:
        spent, now_ms = 0, turn.now_ms
        while spent < at_most and self._heap and self._heap[0][0] <= now_ms:
            at_ms, name = heapq.heappop(self._heap)
            row = self.table.get(name)
            if row is not None and row.next_ms == at_ms:
                spent += self._fire(turn, row)
        return spent

    def is_due(self, name: str, now_ms: int) -> bool:
        """Whether the schedule has an instant that has come and was not dealt with."""
        row = self.table.get(name)
        return row is not None and row.next_ms is not None and row.next_ms <= now_ms

    def fire_due(self, turn: Turn, name: str) -> None:
        """Deals with what is due of a schedule, before a command changes it."""
        if self.is_due(name, turn.now_ms):
            self._fire(turn, self.table.values[name])

    def _rebuild(self) -> None:
        self._heap = [
            (row.next_ms, name) for name, row in self.table.values.items()
            if row.next_ms is not None
        ]
        heapq.heapify(self._heap)
        self._is_stale = False

    def put(self, turn: Turn, row: ScheduleRow) -> None:
        """The row as it is now; what has changed is told, and a tick is no change."""
        before, spec = self.table.get(row.name), row.spec
        if spec is not None and (before is None or before.revision != row.revision):
            turn.tell_schedule(row.name, told(row, spec))
        self.table.put(row.name, row)
        if row.next_ms is not None:
            heapq.heappush(self._heap, (row.next_ms, row.name))

    def _tell_again(self, turn: Turn, name: str) -> None:
        row = self.table.get(name)
        spec = None if row is None else row.spec
        if row is not None and spec is not None:
            turn.tell_schedule(name, told(row, spec))

    def drop(self, turn: Turn, name: str) -> None:
        """The schedule is gone."""
        self.table.put(name, None)
        turn.tell_schedule(name, None)

    # --- announcements ---

    def _look_at_all(self) -> None:
        names = set(self.table.values)
        for one in self._announced:
            for name in one.specs:
                if self._partitioner.of(USER_PREFIX + name) == self._number:
                    names.add(name)
        self._unseen = deque(sorted(names))

    def _follow(self, turn: Turn, name: str, now_ms: int) -> None:
        row = self.table.get(name)
        found = specs_of(name, self._announced)
        if not found:
            self._note_absent(name, row, now_ms)
            if row is not None:
                self._renew(turn, row, now_ms)
            return
        self._absent_since.pop(name, None)
        new = ScheduleRow(name, now_ms) if row is None else row.copy()
        before = new.spec
        new.code = _plans_of(new, found, now_ms)
        new.source = source_of(name, self._announced)
        if new.is_orphaned:
            new.is_orphaned = False
            new.created_at, new.last_ms = now_ms, now_ms - 1
            self.change(new, "announced again", now_ms)
        elif before is None:
            self.change(new, "created", now_ms)
        elif new.spec != before:
            new.last_ms = max(new.last_ms, now_ms)
            self.change(new, "announced", now_ms)
        elif row is not None and new.source == row.source and (
            [one.spec for one in new.code] == [one.spec for one in row.code]
        ):
            self._renew(turn, row, now_ms)
            return
        self.put(turn, new)

    def _note_absent(self, name: str, row: ScheduleRow | None, now_ms: int) -> None:
        is_without = (
            row is not None and not row.is_orphaned
            and is_left_out(name, row.source, self._announced)
        )
        if is_without:
            self._absent_since.setdefault(name, now_ms)
        else:
            self._absent_since.pop(name, None)

    def _orphan_absent(self, turn: Turn, now_ms: int) -> None:
        for name, since_ms in list(self._absent_since.items()):
            row = self.table.get(name)
            if row is None or now_ms - since_ms < ORPHAN_AFTER_MS:
                continue
            del self._absent_since[name]
            new = row.copy()
            new.is_orphaned = True
            self.change(new, "orphaned", now_ms)
            self.put(turn, new)

    def _renew(self, turn: Turn, row: ScheduleRow, now_ms: int) -> None:
        """Other zone data: instants to come are reckoned anew, the one that is due stays."""
        if row.zone_data == self.zone_data or not self._is_in_a_zone(row):
            return
        if row.next_ms is not None and row.next_ms <= now_ms:
            return  # it fires first
        new = row.copy()
        self.change(new, "zone data", now_ms)
        self.put(turn, new)

    def _is_in_a_zone(self, row: ScheduleRow) -> bool:
        spec = row.spec
        return spec is not None and spec.cron is not None and spec.zone != "UTC"

    def change(
        self, new: ScheduleRow, change: str, now_ms: int, command: ScheduleCommand | None = None
    ) -> None:
        """The row is another one: its next instant is reckoned from the last one."""
        new.note(change, now_ms, command)
        new.zone_data = self.zone_data
        is_still = new.is_paused or (new.is_orphaned and new.live is None)
        plan = None if is_still else self.plan_of(new)
        new.next_ms = None if plan is None else next_after(plan, new.last_ms)

    def plan_of(self, row: ScheduleRow) -> Plan | None:
        """The plan that rules; None where it cannot be reckoned, and the row says why."""
        spec = row.spec
        if spec is None:
            return None
        known = self._plans.get(row.name)
        if known is not None and known[0] is spec and known[1] == row.created_at:
            return known[2]
        first_ms = row.created_at if spec.is_first_now else None
        try:
            if spec.cron is not None:
                rule: Every | ByCron = ByCron(
                    Cron(spec.cron), self.zone_of(spec.zone), spec.gap, spec.fold
                )
            else:
                rule = Every(spec.every_ms or 0, row.created_at)
        except ValueError as error:
            row.problem = str(error)
            return None
        row.problem = None
        plan = Plan(rule, first_ms)
        self._plans[row.name] = (spec, row.created_at, plan)
        return plan

    # --- ticks ---

    def _fire(self, turn: Turn, row: ScheduleRow) -> int:
        """The row's instant has come; perhaps later ones too. How many jobs that brings."""
        spec, instant, now_ms = row.spec, row.next_ms, turn.now_ms
        if spec is None or instant is None:
            return 0
        new = row.copy()
        plan = self.plan_of(new)
        following = None if plan is None else next_after(plan, instant)
        is_plain = following is None or following > now_ms
        if plan is None or (is_plain and now_ms - instant <= GRACE_MS):
            found = Due((instant,), 0, Count(0))
            skipped_at = instant
        else:
            found = _due(plan, instant, now_ms, spec)
            skipped_at = _last_skipped(plan, instant, now_ms, found)
        spent = 1
        if found.skipped.number:
            self.ask(turn, new, spec, Tick(
                skipped_at, now_ms, _previous(row), True, found.skipped.number,
                found.skipped.is_exact,
            ))
            spent += 1
        previous = _previous(row)
        for index, each in enumerate(found.run):
            self.ask(turn, new, spec, Tick(each, now_ms, previous, index < found.late))
            previous = each
            spent += 1
        if is_plain and following is not None and len(found.run) == 1:
            new.last_ms, new.next_ms = instant, following
        else:
            new.last_ms = now_ms if plan is not None else instant
            new.next_ms = None if plan is None else next_after(plan, max(now_ms, instant))
        new.zone_data = self.zone_data
        self.put(turn, new)
        return spent

    def ask(self, turn: Turn, row: ScheduleRow, spec: ScheduleSpec, tick: Tick) -> None:
        """Asks for the job of a tick. What somebody asked for by hand waits for earlier ones."""
        definition = self._definitions.get(spec.type)
        takes_tick = definition is None or definition.takes_tick
        decoded, job_id = request_of(row.name, spec, tick, takes_tick=takes_tick)
        if isinstance(decoded, Refusal):
            row.problem = decoded.message
            return
        policy = turn.policies.schedules
        said: dict[str, Verdict] | None = None
        if tick.missed:
            said = {policy.id: _MISSED}
        elif spec.overlap == "cancel_old" and not tick.suffix:
            policy.cancel_old(turn, row.name)
        if tick.suffix or (tick.is_catch_up and spec.catch_up == "all"):
            run_at = decoded.request.run_at
            is_later = run_at is not None and run_at.timestamp() * 1000 > turn.now_ms
            said = said or {policy.id: policy.of_late(turn, row.name, is_later=is_later)}
        turn.submit(decoded, job_id, said=said)


def _plans_of(
    row: ScheduleRow, found: dict[int, ScheduleSpec], now_ms: int
) -> tuple[Known, ...]:
    """Plans that nobody has now, then those that somebody has, each in the order of their first
    announcement. The former are kept: a restart brings one back, and it is no newer for that."""
    had = {one.spec.fingerprint for one in row.code}
    added = [Known(found[one], now_ms) for one in sorted(found) if one not in had]
    known = sorted([*row.code, *added], key=lambda one: one.first_at)
    gone = [one for one in known if one.spec.fingerprint not in found]
    return tuple(gone[-PLANS_KEPT:] + [one for one in known if one.spec.fingerprint in found])


def _previous(row: ScheduleRow) -> int | None:
    return row.last_ms if row.last_ms >= row.created_at else None


def _due(plan: Plan, first_ms: int, now_ms: int, spec: ScheduleSpec) -> Due:
    """The newest instant runs if it is not too late; the others were missed."""
    newest = latest(plan, first_ms - 1, now_ms, at_most=1)
    late_ms = now_ms - newest[-1] if newest else 0
    grace_ms = late_ms if late_ms <= GRACE_MS else 0
    return due(plan, first_ms - 1, now_ms, catch_up=spec.catch_up, grace_ms=grace_ms)


def _last_skipped(plan: Plan, first_ms: int, now_ms: int, found: Due) -> int:
    """The newest of the instants that do not run: its id stands for all of them."""
    border = found.run[0] - 1 if found.run else now_ms
    skipped = latest(plan, first_ms - 1, border, at_most=1)
    return skipped[-1] if skipped else first_ms
