"""Kafka's Produce request, built by hand: batches that no client builds but every broker accepts."""

from __future__ import annotations

import gzip
import io
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

_PRODUCE, _VERSION = 0, 7
_CODECS = {"none": 0, "gzip": 1, "lz4": 3}
_POLYNOMIAL = 0x82F63B78
"""Polynomial of CRC-32C, bits reversed."""


@dataclass(frozen=True)
class WireRecord:
    """One record of a batch.

    Attributes:
        offset: relative to the batch's first; if not given, its index in the batch.
        null: length that marks a missing key.
    """

    value: bytes
    offset: int | None = None
    null: int = -1


@dataclass(frozen=True)
class Batch:
    """Records that are sent as one batch.

    Attributes:
        codec: compression that the batch declares to the broker: ``none``, ``gzip`` or ``lz4``.
        compress: builds the compressed stream of the records.
    """

    records: Sequence[WireRecord]
    codec: str = "none"
    compress: Callable[[bytes], bytes] = bytes

    def encode(self) -> bytes:
        """The batch in wire format 2."""
        body = self.compress(b"".join(_record(each, number) for number, each in enumerate(self.records)))
        last = len(self.records) - 1
        # Timestamped now, or retention would delete it at once; from no idempotent producer.
        at = int(time.time() * 1_000)
        fixed = struct.pack(">hiqqqhii", _CODECS[self.codec], last, at, at, -1, -1, -1, last + 1)
        checked = fixed + body
        head = struct.pack(">ibI", -1, 2, crc32c(checked))
        return struct.pack(">qi", 0, len(head) + len(checked)) + head + checked


class RefusedError(Exception):
    """The broker refused what was sent."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the broker answers with error {code}")


class WireProducer:
    """Sends batches to the only broker of a cluster. A context manager.

    Args:
        address: ``host:port``.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=120)
        self._answers = self._socket.makefile("rb")

    def __enter__(self) -> WireProducer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answers.close()
        self._socket.close()

    def send(self, topic: str, batch: Batch, partition: int = 0) -> int:
        """Send a batch. Returns the offset of its first record. Raises RefusedError."""
        records = batch.encode()
        request = b"".join(
            (
                struct.pack(">hhi", _PRODUCE, _VERSION, 0),
                _text("hand"),
                # In no transaction, acknowledged by all, within 30 s, for one topic.
                struct.pack(">hhii", -1, -1, 30_000, 1),
                _text(topic),
                struct.pack(">iii", 1, partition, len(records)),
                records,
            )
        )
        self._socket.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", self._answers.read(4))
        answer = io.BytesIO(self._answers.read(size))
        answer.seek(4 + 4)
        (length,) = struct.unpack(">h", answer.read(2))
        answer.seek(length + 4 + 4, io.SEEK_CUR)
        code, offset = struct.unpack(">hq", answer.read(10))
        if code:
            raise RefusedError(code)
        return int(offset)


def gzip_members(data: bytes) -> bytes:
    """gzip in two members, one after the other."""
    middle = len(data) // 2
    return gzip.compress(data[:middle], 1) + gzip.compress(data[middle:], 1)


def lz4_and_more(data: bytes) -> bytes:
    """An LZ4 frame of one uncompressed block, followed by more bytes."""
    assert len(data) <= 64 << 10
    # Magic; version 1, independent blocks; blocks of 64 KiB; checksum of these two bytes.
    head = struct.pack("<I", 0x184D2204) + b"\x60\x40\x82"
    return head + struct.pack("<I", len(data) | 1 << 31) + data + bytes(4) + b"more of it"


def _record(record: WireRecord, number: int) -> bytes:
    # No attributes, the batch's timestamp.
    out = bytes(1) + varint(0) + varint(number if record.offset is None else record.offset)
    out += varint(record.null) + varint(len(record.value)) + record.value + varint(0)
    return varint(len(out)) + out


def varint(number: int) -> bytes:
    """Zigzag encoding of a number of up to 64 bits."""
    left = ((number << 1) ^ (number >> 63)) & ((1 << 64) - 1)
    out = bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)
    return bytes(out)


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text.encode())) + text.encode()


def _crc_table() -> list[int]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (_POLYNOMIAL if number & 1 else 0)
        table.append(number)
    return table


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """The checksum of a batch."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
