"""Records on their way out, as the batches that Kafka stores.

Owns the head of a batch, its compression and how large a record may be. Refuses to know how batches
are sent: `tidemill.agents.runtime.batch_writer` gives each its producer and its place in the
sequence.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias

from aiokafka.codec import zstd_encode
from aiokafka.record.util import calc_crc32c
from isal import isal_zlib

from tidemill.agents.runtime.errors import FatalError, PoisonMessage
from tidemill.schemas.batch_builder import BatchBuilder, OutGroup, OutRecord, RecordPage
from tidemill.schemas.topics import Topics

#: topic and partition.
Target: TypeAlias = tuple[str, int]

NO_CODECS: Final[Mapping[str, int]] = {}
# The largest record: that of jobs.dead, with room for the headers.
RECORD_BYTES_MAX: Final = 8 * 1024 * 1024
NO_CODEC: Final = 0
# What every client reads without an extra library: the public topics (docs/decisions/0050).
GZIP: Final = 1
# Half the bytes of lz4 for events and rows, at less processor time with that codec (decision 0023).
ZSTD: Final = 4
# The codecs of the setting `public_compression`.
CODECS: Final[Mapping[str, int]] = {"gzip": GZIP, "zstd": ZSTD, "none": NO_CODEC}
_GZIP_FORM: Final = 31  # zlib's word for gzip: the largest window, a head, a checksum

# The codecs' first levels: events and rows are as small as at the default, in a fifth less time.
_COMPRESS: Final[dict[int, Callable[[bytes], bytes]]] = {
    GZIP: partial(isal_zlib.compress, level=1, wbits=_GZIP_FORM),
    ZSTD: partial(zstd_encode, level=1),
}

# A batch: the offset of its first record (the broker sets it), the bytes that follow, the leader's
# epoch, the format, the checksum of what follows it.
_BEGIN: Final = struct.Struct(">qiibI")
# What the checksum covers, before the records: attributes, offset of the last record from the
# first's, first and last instant, producer's id and epoch, sequence of the first record, records.
_HEAD: Final = struct.Struct(">hiqqqhii")
_FORMAT: Final = 2
_NO_LEADER_EPOCH: Final = -1
_TRANSACTIONAL: Final = 0x10
# Of those that count as bytes that follow, the ones that are not under the checksum.
_UNCHECKED_BYTES: Final = _BEGIN.size - struct.calcsize(">qi")


class OutBatch:
    """Records of one partition in order. Once sealed it is the same bytes at each try."""

    __slots__ = (
        "_codec", "_data", "_is_transactional", "_now_ms", "_page", "base_offset", "target",
    )

    def __init__(
        self,
        target: Target,
        page: RecordPage,
        now_ms: int,
        *,
        is_transactional: bool = False,
        codec: int = ZSTD,
    ) -> None:
        self.target = target
        self.base_offset = -1  # of its first record, once it is written
        self._page = page
        self._now_ms = now_ms  # of all records
        self._is_transactional = is_transactional
        self._codec = codec
        self._data: bytes | None = None

    @property
    def count(self) -> int:
        """Records."""
        return self._page.count

    @property
    def size(self) -> int:
        """Bytes of the records, not compressed."""
        return self._page.size

    def seal(self, producer_id: int, epoch: int, sequence: int) -> None:
        """Compress it for good; `sequence` is its first record's."""
        if self._data is not None:
            return
        records, attributes = self._page.getvalue(), NO_CODEC
        if self._codec != NO_CODEC:
            compressed = _COMPRESS[self._codec](records)
            if len(compressed) < len(records):
                records, attributes = compressed, self._codec
        if self._is_transactional:
            attributes |= _TRANSACTIONAL
        head = _HEAD.pack(
            attributes, self.count - 1, self._now_ms, self._now_ms, producer_id, epoch, sequence,
            self.count,
        )
        checked = head + records
        begin = _BEGIN.pack(
            0, len(checked) + _UNCHECKED_BYTES, _NO_LEADER_EPOCH, _FORMAT, calc_crc32c(checked)
        )
        self._data = begin + checked

    @property
    def data(self) -> bytes:
        """As it goes to the broker; only after `seal`."""
        if self._data is None:
            raise ValueError(f"the batch for {self.target} is not sealed yet")
        return self._data


def public_codecs(topics: Topics, codec: int) -> dict[str, int]:
    """The codec of each topic that strangers read; the others keep `ZSTD`."""
    return {spec.name: codec for spec in topics.fixed() if spec.is_public}


def transactional_batches(
    group: OutGroup, now_ms: int, codecs: Mapping[str, int] = NO_CODECS
) -> dict[Target, deque[OutBatch]]:
    """Batches by partition, in the order of the records, in the codec of their topic (`ZSTD` where
    `codecs` names none). PoisonMessage names a record's topic."""
    batches: dict[Target, deque[OutBatch]] = {}
    for pages in [*group.pages, *pages_of(group.loose)]:
        target = pages.topic, pages.partition
        if target in batches:
            raise FatalError(f"two parts of a group write to {target[0]}-{target[1]}")
        codec = codecs.get(pages.topic, ZSTD)
        batches[target] = deque(
            OutBatch(target, page, now_ms, is_transactional=True, codec=codec)
            for page in _checked(pages)
        )
    return batches


def pages_of(records: Iterable[OutRecord]) -> Sequence[BatchBuilder]:
    """Records of any partitions, by partition."""
    found: dict[Target, BatchBuilder] = {}
    for topic, partition, key, value, headers in records:
        pages = found.get((topic, partition))
        if pages is None:
            pages = found[topic, partition] = BatchBuilder(topic, partition)
        pages.add(key, value, headers)
    return list(found.values())


def _checked(pages: BatchBuilder) -> list[RecordPage]:
    found = pages.pages()
    for page in found:
        # A page takes its first record whatever its size, so only that one can be too large.
        if page.count == 1 and page.size > RECORD_BYTES_MAX:
            raise PoisonMessage(
                f"a record of {page.size} bytes for topic {pages.topic} is larger than "
                f"{RECORD_BYTES_MAX} bytes; the decision must refuse it before it gets here"
            )
    return found
