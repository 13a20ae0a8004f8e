"""Plays a tape to the core of one checkout and says what came out of each group.

Owns the calls to a core, whatever its modules are called. Imports nothing but the core, so that it
runs in a process of its own with the packages of any checkout. Refuses to compare.

usage: python replay.py TAPE OUT [--rows-out FILE | --rows-in FILE | --dump SEAL | --time ROUNDS]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import pickle
import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

CORE, CONTRACTS = "streams", "schemas"
ABOVE = ("tidemill.", "")  # a checkout of today, and one from before it had one name at the top


def _module(package: str, *names: str) -> Any:
    """The first of these modules that the checkout has, below `tidemill` or not."""
    for prefix in ABOVE:
        for name in names:
            path = f"{prefix}{package}.{name}"
            try:
                return importlib.import_module(path)
            except ModuleNotFoundError as error:
                if not path.startswith(error.name or " "):
                    raise
    raise SystemExit(f"no module {names} in {sys.path}")


_PARTITION = _module(CORE, "partition")
_POOLS = _module(CORE, "dispatch.slot_pool", "schedule")
_POOL_NAME = getattr(_POOLS, "SlotPoolName", None) or getattr(_POOLS, f"{'Line'}Name")
_STALL = _module(CORE, "stalls").Stall
_STATE = _module(CORE, "store.state", "state").PartitionState
_WIRE = _module(CONTRACTS, "wire")
_TOPICS = _module(CONTRACTS, "topics").Topics()


class _Record(NamedTuple):
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Any


class Player:
    """The partitions of all worlds of a tape, and their rows."""

    def __init__(self, rows_in: list[Any] | None = None) -> None:
        self.engines: dict[Any, Any] = {}
        self.rows: dict[Any, dict[bytes, bytes]] = {}
        self.pending: dict[Any, list[tuple[bytes, bytes | None]]] = {}
        self.rows_out: list[Any] = []
        self._rows_in = rows_in
        self._definitions: dict[str, Any] = {}

    def play(self, call: tuple[Any, ...]) -> Any:
        """One call; what it returned."""
        place, name, *values = call
        if name == "restore":
            return self._restore(place, *values)
        if name == "commit":
            rows = self.rows[place]
            for key, value in self.pending[place]:
                if value is None:
                    rows.pop(key, None)
                else:
                    rows[key] = value
            return None
        engine = self.engines[place]
        if name == "take":
            record = _Record(*values)
            return engine.take(record.topic, record.partition, record)
        if name == "set_workers":
            facts = dict(values[1])
            facts["stalls"] = {name: _STALL(*stall) for name, stall in facts["stalls"].items()}
            return engine.set_workers(values[0], **facts)
        if name == "set_capacity":
            rooms = {_POOL_NAME(*line): _PARTITION.Capacity(*room) for line, room in values[0]}
            return engine.set_capacity(rooms)
        if name == "define":
            return engine.define(self._definition(values[0]))
        # The words of the group's end have changed.
        renamed = {"settle": "commit", "undo": "rollback"}.get(name, name)
        return getattr(engine, name if hasattr(engine, name) else renamed)(*values)

    def _restore(self, place: Any, partitions: int, now_ms: int) -> None:
        rows = self.rows.setdefault(place, {})
        if self._rows_in is not None:
            rows = self.rows[place] = dict(self._rows_in[len(self.rows_out)])
        self.rows_out.append(list(rows.items()))
        state = _STATE()
        for key, value in rows.items():
            state.load(key, value)
        engine = _PARTITION.Partition(place[1], partitions, _TOPICS, state)
        engine.restored(now_ms)
        self.engines[place] = engine

    def _definition(self, text: str) -> Any:
        found = self._definitions.get(text)
        if found is None:
            found = self._definitions[text] = _WIRE.Definition.model_validate_json(text)
        return found


def _digest(values: Iterable[Any]) -> str:
    total = hashlib.blake2b(digest_size=12)
    for value in values:
        total.update(repr(value).encode())
    return total.hexdigest()


def compare_line(player: Player, call: tuple[Any, ...], out: Any) -> tuple[list[Any], list[Any]]:
    """Of a sealed group: what everybody reads, and the rows that only ledgers read."""
    records = list(out)
    engine = player.engines[call[0]]
    # The order among rows of several tables means nothing to a restore.
    rows = sorted(
        [record for record in records if record[0] == _TOPICS.state], key=lambda row: row[2][:1]
    )
    player.pending[call[0]] = [(record[2], record[3]) for record in rows]
    public: list[Any] = [record for record in records if record[0] != _TOPICS.state]
    # Texts that end up in a log, and the instant at which the next group has work of its own.
    public += [tuple(one) for one in getattr(engine, "dead_letters", ())]
    public.append(engine.next_tick_at())
    return public, rows


def play_all(calls: list[Any], player: Player, out_path: str, dump: int | None) -> None:
    """One line a sealed group: digests of what is public and of the rows."""
    seals = 0
    lines: list[str] = []
    for call in calls:
        said: Any
        try:
            said = player.play(call)
        except Exception as error:  # noqa: BLE001  # both must raise it, whatever it is
            lines.append(f"{call[1]} raised {type(error).__name__}: {error}")
            continue
        if call[1] == "seal":
            public, rows = compare_line(player, call, said)
            if seals == dump:
                for record in (*public, *rows):
                    print(record)
                return
            lines.append(f"{seals} {_digest(public)} {_digest(rows)} {len(public) - 1}")
            seals += 1
        elif call[1] == "take":
            lines.append(f"take {said}")
    with open(out_path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))


def time_all(calls: list[Any], rounds: int) -> None:
    """Seconds of processor time for the whole tape, the quickest of some rounds."""
    best = float("inf")
    for _ in range(rounds):
        player = Player()
        begun = time.process_time()
        for call in calls:
            player.pending[call[0]] = []
            player.play(call)
        best = min(best, time.process_time() - begun)
    print(f"{best:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tape")
    parser.add_argument("out")
    parser.add_argument("--rows-out")
    parser.add_argument("--rows-in")
    parser.add_argument("--dump", type=int)
    parser.add_argument("--time", type=int)
    given = parser.parse_args()
    with open(given.tape, "rb") as file:
        calls = pickle.load(file)
    if given.time:
        time_all(calls, given.time)
        return
    rows_in = None
    if given.rows_in:
        with open(given.rows_in, "rb") as file:
            rows_in = pickle.load(file)
    player = Player(rows_in)
    play_all(calls, player, given.out, given.dump)
    if given.rows_out:
        with open(given.rows_out, "wb") as file:
            pickle.dump(player.rows_out, file)


if __name__ == "__main__":
    main()
