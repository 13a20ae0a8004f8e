"""From records to batches: order, bounds, and what cannot be written."""

from __future__ import annotations

from collections import deque

import pytest
from aiokafka.record.memory_records import MemoryRecords

from tidemill.agents.runtime.batches_out import (
    CODECS,
    RECORD_BYTES_MAX,
    ZSTD,
    OutBatch,
    Target,
    public_codecs,
    transactional_batches,
)
from tidemill.agents.runtime.errors import FatalError, PoisonMessage
from tidemill.agents.settings import LedgerSettings
from tidemill.schemas.batch_builder import (
    PAGE_BYTES_MAX,
    BatchBuilder,
    OutGroup,
    OutRecord,
    RecordPage,
)
from tidemill.schemas.topics import Topics

AT_MS = 1_790_000_000_000


def read(batches: dict[Target, deque[OutBatch]]) -> dict[Target, list[list[OutRecord]]]:
    """What a consumer would read of each batch."""
    found: dict[Target, list[list[OutRecord]]] = {}
    for target, few in batches.items():
        for batch in few:
            batch.seal(7, 3, 100)
            memory = MemoryRecords(bytes(batch.data))
            stored = memory.next_batch()
            assert stored is not None
            assert (stored.producer_id, stored.producer_epoch, stored.base_sequence) == (7, 3, 100)
            assert stored.validate_crc()
            records = [
                (*target, record.key, record.value, list(record.headers) or None)
                for record in stored
            ]
            assert len(records) == batch.count
            found.setdefault(target, []).append(records)
    return found


def test_records_keep_their_order_in_each_partition() -> None:
    records: list[OutRecord] = [
        ("events", 0, b"u", b"1", None),
        ("completed", 0, b"u", b"end", [("ce_id", b"1"), ("empty", None)]),
        ("events", 0, b"u", b"2", None),
        ("events", 1, b"v", b"3", None),
        ("state", 0, b"k", None, None),
        ("events", 0, None, b"4", None),
    ]
    found = read(transactional_batches(OutGroup(records), AT_MS))
    assert found == {
        (topic, partition): [
            [record for record in records if record[:2] == (topic, partition)]
        ]
        for topic, partition in (("events", 0), ("completed", 0), ("events", 1), ("state", 0))
    }


def test_a_batch_that_is_full_is_followed_by_another_one() -> None:
    value = b"x" * (PAGE_BYTES_MAX // 4)
    records: list[OutRecord] = [("events", 0, b"%d" % number, value, None) for number in range(10)]
    batches = transactional_batches(OutGroup(records), AT_MS)
    assert all(batch.size <= PAGE_BYTES_MAX for batch in batches["events", 0])
    parts = read(batches)["events", 0]
    assert len(parts) > 1
    assert [record for part in parts for record in part] == records


def test_a_record_may_be_larger_than_a_batch_but_not_than_a_record() -> None:
    large: OutRecord = ("dead", 0, None, b"x" * (2 * PAGE_BYTES_MAX), None)
    small: OutRecord = ("dead", 0, None, b"y", None)
    batches = transactional_batches(OutGroup([small, large, small]), AT_MS)
    assert [batch.count for batch in batches["dead", 0]] == [1, 1, 1]
    poison: OutRecord = ("dead", 0, None, b"x" * (RECORD_BYTES_MAX + 1), None)
    with pytest.raises(PoisonMessage, match="topic dead"):
        transactional_batches(OutGroup([small, poison]), AT_MS)


def test_two_parts_of_a_group_in_one_partition_are_refused() -> None:
    group = OutGroup([("events", 0, None, b"1", None)])
    pages = BatchBuilder("events", 0)
    pages.add(None, b"2")
    group.pages.append(pages)
    with pytest.raises(FatalError, match="events-0"):
        transactional_batches(group, AT_MS)


def test_a_sealed_batch_stays_as_it_is() -> None:
    page = RecordPage()
    assert page.append(None, b"1", None)
    batch = OutBatch(("events", 0), page, AT_MS)
    with pytest.raises(ValueError, match="not sealed"):
        _ = batch.data
    batch.seal(7, 3, 100)
    first = bytes(batch.data)
    batch.seal(7, 3, 200)
    assert bytes(batch.data) == first


def codec_of(batch: OutBatch) -> int:
    """As a reader sees it: the low bits of the attributes in a batch's head."""
    batch.seal(7, 3, 100)
    return batch.data[22] & 0x07


@pytest.mark.parametrize("size", [100, 1_000, 100_000, 900_000])
@pytest.mark.parametrize(("name", "number"), [("none", 0), ("gzip", 1), ("zstd", 4)])
def test_public_topics_have_a_codec_of_their_own(name: str, number: int, size: int) -> None:
    topics = Topics("p.")
    codecs = public_codecs(topics, CODECS[name])
    records: list[OutRecord] = [
        (topic, 0, b"k", b"word " * (size // 5), None)
        for topic in (topics.events, topics.completed, topics.retry, topics.dead, topics.state,
                      topics.internal, topics.ready("mail"))
    ]
    batches = transactional_batches(OutGroup(records), AT_MS, codecs)
    found = {target[0]: codec_of(few[0]) for target, few in batches.items()}
    public = {topics.events, topics.completed, topics.retry, topics.dead}
    assert found == {topic: number if topic in public else ZSTD for topic in found}
    assert {record[0]: read(batches)[record[0], 0] for record in records} == {
        record[0]: [[record]] for record in records
    }


def test_by_default_every_client_reads_what_is_public() -> None:
    assert CODECS[LedgerSettings().public_compression] == 1
