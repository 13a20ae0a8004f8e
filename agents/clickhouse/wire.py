"""Bytes of ClickHouse's HTTP interface: content encodings, its compressed blocks, statuses, types.

Owns how an answer is packed and how a request body is unpacked, with a bound on what it may unpack
to. It refuses to know SQL, engines and web frameworks.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Iterable

from tidemill.agents.clickhouse.engine import EngineError

GZIP_LEVEL = 1
"""A local reader waits for CPU, not for the network; level 1 packs most for the least of it."""
COMPRESS_BYTES_MIN = 1_024
"""Below this an encoding costs more than it saves."""
BLOCK_BYTES = 1_048_576
"""Uncompressed bytes in one native compressed block, as ClickHouse writes them."""
LZ4_METHOD = 0x82
BLOCK_HEADER_BYTES = 9
WORD_MASK = 0xFFFF_FFFF_FFFF_FFFF

HELLO_SQL = "SELECT displayName(), version(), revision(), timezone()"
"""What clickhouse-go asks first over HTTP; it reads the answer at its own protocol version."""
HELLO_PROTOCOL_MIN = 54_454
"""From this protocol version on a Native block has what `hello_block` adds to its columns."""
WORD_MASK = 0xFFFF_FFFF_FFFF_FFFF

HELLO_SQL = "SELECT displayName(), version(), revision(), timezone()"
"""From this protocol version on a Native block has what `hello_block` adds to its columns."""
HELLO_PROTOCOL_MIN = 54_454
"""From this protocol version on a Native block has what `hello_block` adds."""

# The server's own preference, best first; what is not installed is skipped.
ENCODINGS = ("zstd", "lz4", "gzip", "deflate")

_STATUS_OF_CODE = {
    46: 404,  # UNKNOWN_FUNCTION
    47: 404,  # UNKNOWN_IDENTIFIER
    50: 404,  # UNKNOWN_TYPE
    60: 404,  # UNKNOWN_TABLE
    73: 404,  # UNKNOWN_FORMAT
    81: 404,  # UNKNOWN_DATABASE
    115: 404,  # UNKNOWN_SETTING
    159: 408,  # TIMEOUT_EXCEEDED
    164: 403,  # READONLY
    202: 429,  # TOO_MANY_SIMULTANEOUS_QUERIES
    210: 503,  # NETWORK_ERROR
    497: 403,  # ACCESS_DENIED
    516: 401,  # AUTHENTICATION_FAILED
}
_BAD_REQUEST_CODES = frozenset(
    {6, 27, 36, 38, 41, 42, 43, 44, 53, 62, 69, 70, 72, 117, 130, 386, 456, 457}
)
_CONTENT_TYPES = {
    "Arrow": "application/vnd.apache.arrow.file",
    "ArrowStream": "application/vnd.apache.arrow.stream",
    "CSV": "text/csv; charset=UTF-8; header=absent",
    "CSVWithNames": "text/csv; charset=UTF-8; header=present",
    "CSVWithNamesAndTypes": "text/csv; charset=UTF-8; header=present",
    "Native": "application/octet-stream",
    "Parquet": "application/octet-stream",
    "XML": "application/xml; charset=UTF-8",
    "HTML": "text/html; charset=UTF-8",
    "Markdown": "text/markdown; charset=UTF-8",
}


def status_of(error: EngineError) -> int:
    """The HTTP status under which ClickHouse answers such an error."""
    return 400 if error.code in _BAD_REQUEST_CODES else _STATUS_OF_CODE.get(error.code, 500)


def content_type_of(fmt: str) -> str:
    """The Content-Type of an answer in a ClickHouse format."""
    if fmt in _CONTENT_TYPES:
        return _CONTENT_TYPES[fmt]
    if fmt.startswith("JSON") or fmt == "NDJSON":
        return (
            "application/json; charset=UTF-8"
            if "EachRow" not in fmt
            else "application/x-ndjson; charset=UTF-8"
        )
    if fmt.startswith(("RowBinary", "Avro", "ORC", "Npy", "MsgPack", "Protobuf", "BSON")):
        return "application/octet-stream"
    if fmt.startswith(("TSV", "TabSeparated")):
        return "text/tab-separated-values; charset=UTF-8"
    return "text/plain; charset=UTF-8"


def accepted_encoding(accept_encoding: str) -> str | None:
    """The encoding for an answer by the request's Accept-Encoding; None when it goes as it is."""
    wanted = set[str]()
    for part in accept_encoding.lower().split(","):
        name, _, weight = part.partition(";")
        if weight.strip() not in ("q=0", "q=0.0"):
            wanted.add(name.strip())
    for name in ENCODINGS:
        if name in wanted and _packer(name) is not None:
            return name
    return None


def packed(data: bytes, encoding: str) -> bytes:
    """The bytes in one of ENCODINGS."""
    packer = _packer(encoding)
    if packer is None:
        raise EngineError(f"encoding {encoding}: not available", code=48, name="NOT_IMPLEMENTED")
    return packer(data)


def unpacked(data: bytes, encoding: str, *, bytes_max: int) -> bytes:
    """A request body by its Content-Encoding; raises when it unpacks to more than `bytes_max`."""
    try:
        plain = _unpacked(data, encoding, bytes_max)
    except (zlib.error, RuntimeError, EOFError, ValueError) as error:
        raise EngineError(
            f"Request body is not valid {encoding}: {error}", code=62, name="SYNTAX_ERROR"
        ) from error
    if len(plain) > bytes_max:
        raise EngineError(
            f"Request body is larger than {bytes_max} bytes", code=62, name="SYNTAX_ERROR"
        )
    return plain


def _unpacked(data: bytes, encoding: str, bytes_max: int) -> bytes:
    match encoding.lower():
        case "" | "identity":
            return data
        case "gzip":
            return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(data, bytes_max + 1)
        case "deflate":
            return zlib.decompressobj().decompress(data, bytes_max + 1)
        case "lz4":
            import lz4.frame  # type: ignore[import-untyped]

            decompressor = lz4.frame.LZ4FrameDecompressor()
            return bytes(decompressor.decompress(data, max_length=bytes_max + 1))
        case "zstd":
            from backports.zstd import ZstdDecompressor, ZstdError

            try:
                return ZstdDecompressor().decompress(data, max_length=bytes_max + 1)
            except ZstdError as error:
                raise ValueError(str(error)) from error
        case _:
            raise EngineError(
                f"Content-Encoding {encoding}: use gzip, deflate, lz4, zstd or none",
                code=48,
                name="NOT_IMPLEMENTED",
            )


def compressed_blocks(data: bytes) -> bytes:
    """ClickHouse's own framing for `compress=1`: checksum, method, two sizes, LZ4, per block.

    The layout is that of ClickHouse's CompressedWriteBuffer: CityHash128 (version 1.0.2) of all
    that follows it, the method's byte, the compressed size with this header, the plain size.
    """
    try:
        import lz4.block  # type: ignore[import-untyped]
        from clickhouse_cityhash.cityhash import (  # type: ignore[import-untyped]
            CityHash128,
        )
    except ImportError as error:
        raise EngineError(
            "compress=1 needs the packages clickhouse-cityhash and lz4 on this side; ask without "
            "compress=1, or with Accept-Encoding: gzip",
            code=48,
            name="NOT_IMPLEMENTED",
        ) from error

    def block(plain: bytes) -> bytes:
        body = lz4.block.compress(plain, store_size=False)
        size = BLOCK_HEADER_BYTES + len(body)
        rest = struct.pack("<BII", LZ4_METHOD, size, len(plain)) + body
        checksum: int = CityHash128(rest)  # the first of its two words stands in the upper half
        return b"".join((struct.pack("<QQ", checksum >> 64, checksum & WORD_MASK), rest))

    return b"".join(block(data[at : at + BLOCK_BYTES]) for at in _steps(len(data)))


def hello_block(display_name: str, version: str, timezone: str) -> bytes:
    """The answer to HELLO_SQL as a Native block of protocol version HELLO_PROTOCOL_MIN or more.

    chDB writes Native blocks of protocol version 0 only. clickhouse-go reads this one answer at its
    own version, and all that follow at the revision told in it: so we say 0, and the rest fits.
    """
    names = ("displayName()", "version()", "revision()", "timezone()")
    columns = (
        ("String", _text(display_name)),
        ("String", _text(version)),
        ("UInt32", struct.pack("<I", 0)),
        ("String", _text(timezone)),
    )
    no_overflow, no_bucket, end = b"\x01\x00", b"\x02" + struct.pack("<i", -1), b"\x00"
    block = no_overflow + no_bucket + end + bytes((len(columns), 1))
    for name, (kind, data) in zip(names, columns, strict=True):
        block += _text(name) + _text(kind) + b"\x00" + data  # the zero: no custom serialization
    return block


def _text(value: str) -> bytes:
    data = value.encode()[:127]  # one byte of length holds no more, and no such name is longer
    return bytes((len(data),)) + data


def _steps(length: int) -> Iterable[int]:
    return range(0, length, BLOCK_BYTES)


def _packer(encoding: str) -> Callable[[bytes], bytes] | None:
    match encoding:
        case "gzip":
            return lambda data: gzip.compress(data, GZIP_LEVEL)
        case "deflate":
            return lambda data: zlib.compress(data, GZIP_LEVEL)
        case "lz4":
            return _lz4_packer()
        case "zstd":
            return _zstd_packer()
        case _:
            return None


def _lz4_packer() -> Callable[[bytes], bytes] | None:
    try:
        import lz4.frame
    except ImportError:
        return None
    return lambda data: bytes(lz4.frame.compress(data))


def _zstd_packer() -> Callable[[bytes], bytes] | None:
    try:
        from backports import zstd
    except ImportError:
        return None
    return zstd.compress
