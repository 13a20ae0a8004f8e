"""Tables undo, write and load themselves; a new one costs its class and one line of registry."""

from __future__ import annotations

import pytest

from tests.unit.core_kit import NOW
from tests.unit.partition_kit import Scene, plain, request
from tidemill.schemas.batch_builder import BatchBuilder
from tidemill.streams.decision import NeedsNewer
from tidemill.streams.store.rows import job_key
from tidemill.streams.store.state import PartitionState
from tidemill.streams.store.table import Table


class Tokens(Table[str, int]):
    """Tokens left by name, as a later version might have them."""

    def __init__(self, since: str = "0.10.0") -> None:
        super().__init__(b"t", since)
        self.total = 0

    def row_key(self, key: str) -> bytes:
        return b"t" + key.encode()

    def row_value(self, key: str, value: int) -> bytes:
        return b"%d" % value

    def read(self, key: bytes, value: bytes) -> tuple[str, int]:
        return key[1:].decode(), int(value)

    def follow(self, key: str, value: int | None) -> None:
        self.total = sum(self.values.values())


def with_tokens() -> tuple[PartitionState, Tokens]:
    state, tokens = PartitionState(), Tokens()
    state.add(tokens)
    return state, tokens


def written(state: PartitionState) -> dict[bytes, bytes | None]:
    pages = BatchBuilder("jobs.state", 0)
    state.write_rows(pages)
    return {key or b"": value for key, value, _ in pages.records()}


def changed(state: PartitionState) -> bool:
    """The property, read anew each time."""
    return state.has_changes


def test_a_new_table_is_written_undone_and_loaded_with_the_others() -> None:
    state, tokens = with_tokens()
    state.begin(NOW)
    tokens.put("a", 3)
    tokens.put("b", 4)
    rows = written(state)
    assert (rows[b"ta"], rows[b"tb"]) == (b"3", b"4")
    state.commit()
    state.begin(NOW)
    tokens.put("a", None)
    tokens.put("b", 5)
    tokens.put("b", 6)
    tokens.put("c", 7)
    assert tokens.total == 13
    assert written(state).items() >= {b"ta": None, b"tb": b"6", b"tc": b"7"}.items()
    assert tokens.has_changes()
    state.rollback()
    assert not changed(state)
    assert (tokens.values, tokens.total) == ({"a": 3, "b": 4}, 7)
    again, loaded = with_tokens()
    for key, value in rows.items():
        again.load(key, value)
    again.loaded()
    assert (loaded.values, loaded.total) == (tokens.values, 7)
    assert not changed(again)


def test_a_table_needs_a_kind_of_its_own() -> None:
    state, _ = with_tokens()
    with pytest.raises(ValueError, match="a byte of its own"):
        state.add(Tokens())


@pytest.mark.parametrize("since", ["0.10.0", ""])
def test_a_row_of_a_kind_that_came_later_stops_the_start_and_says_which_version_is_needed(
    since: str,
) -> None:
    newer, tokens = PartitionState(), Tokens(since)
    newer.add(tokens)
    newer.begin(NOW)
    tokens.put("a", 3)
    rows = written(newer)
    older = PartitionState()
    for key, value in rows.items():
        older.load(key, value)
    named = "Tidemill 0.10.0 or later" if since else "a later version of Tidemill"
    with pytest.raises(NeedsNewer, match="row of the kind 't'") as raised:
        older.loaded()
    assert named in str(raised.value)
    assert str(raised.value.of("jobs.state[3]")).startswith("jobs.state[3]: ")


def test_what_is_written_without_later_tables_needs_no_later_version() -> None:
    newer, tokens = with_tokens()
    newer.begin(NOW)
    tokens.put("a", 3)
    newer.commit()
    newer.begin(NOW)
    tokens.put("a", None)
    assert b"needs" not in (written(newer)[b"p"] or b"")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (job_key(("u", "j")), b'[4,"pending"]\n{}'),
        (b"m" + bytes(16) + b"name", b'[2,"u","j",1,["name","step",1]]'),
        (b"c" + bytes(16), b'[2,"u","j",1,null,null,"commands",0,1]'),
        (b"e" + bytes(16) + b"go", b'[2,"u","j","go",1,null,"commands",0,1,true]'),
    ],
)
def test_a_row_in_a_later_form_stops_the_start(key: bytes, value: bytes) -> None:
    state = PartitionState()
    state.load(key, value)
    state.load(b"p", b'{"applied":{},"clock":1,"accepted":0,"needs":"0.3.0"}')
    with pytest.raises(NeedsNewer, match=r"version [24].* Tidemill 0\.3\.0 or later"):
        state.loaded()


def test_a_row_of_an_unknown_kind_stops_a_whole_partition() -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j"))
    scene.rows[b"?x"] = b"{}"
    with pytest.raises(NeedsNewer, match="row of the kind"):
        scene.restore(NOW)
    del scene.rows[b"?x"]
    scene.restore(NOW)
    assert scene.state.jobs.keys() == {("u", "j")}
