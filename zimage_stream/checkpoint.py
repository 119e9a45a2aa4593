"""The checkpoint of a partition: the content of its offset commit, and its encoding.

A Kafka offset commit is a single number, but requests finish in any order. The commit's *metadata* therefore
carries the rest: which offsets above the base are already resolved, and a mark for each unresolved request
that has been started. The next worker to own the partition skips exactly the resolved offsets, and learns
from the open marks what was running when its predecessor died.

All functions in this module are pure.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from zimage_stream.errors import ZImageError

MAX_METADATA_CHARACTERS = 3_800
"""Maximum length of the metadata, in characters. The broker's limit is 4,096 bytes with its own header."""
GONE_BACK = "gone back: "
"""Prefix of the metadata of a partition that was stopped because its log end moved backwards; the reason
follows. It tells the next owner of the partition, and a reset of the group's offset removes it."""
MAX_MARKS = 160
MAX_ATTEMPTS = 15

_MAX_GAP = 1 << 28
"""Maximum number of bits in memory, which bounds the allocation that a damaged length can cause."""
_VERSION = 1
_BITMAP, _RUNS = 0, 1
_VERSION_OF_SEGMENTS = 3
"""Version that is written only if the other encodings do not fit; readers that do not know it reject it."""
_RESOLVED_SEGMENTS, _SEGMENTS = 2, 3
_VERSIONS = {_VERSION, _RESOLVED_SEGMENTS, _VERSION_OF_SEGMENTS}
"""Version 2, which leaves out resolved runs only, is read but no longer written."""
SEGMENT_BITS = 72
"""Maximum overhead of a segment, in bits: two numbers, the rest of its last byte, and the longer distance to
the next mark. A run longer than this, resolved or not, is worth a segment of its own."""
_HEADER = struct.Struct(">BQIBB")  # version, base, owner, deaths, encoding of the resolved set
_MAX_BYTES = MAX_METADATA_CHARACTERS * 3 // 4 - 4  # base64, and a checksum


class CheckpointOverflowError(ZImageError):
    """The checkpoint does not fit into the commit's metadata."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The entry of an unresolved request in the checkpoint.

    Attributes:
        attempts: number of starts charged to the request, 0 to 15.
        suspect: the request was running when a process died, and is now run alone.
        open: the request is running now, as far as the log shows.
        alone: nothing else was running in that process.
    """

    attempts: int = 0
    suspect: bool = False
    open: bool = False
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The committed state of one partition.

    Attributes:
        base: lowest offset that is not known to be resolved, which is the committed offset itself.
        resolved: bitmap in which bit i is set if offset ``base + i`` is resolved.
        marks: marks by offset.
        owner: 32-bit nonce of the process that owns the partition; 0 after it released it cleanly.
        deaths: number of consecutive owners that died with no open mark and nothing resolved.
    """

    base: int
    resolved: int = 0
    marks: Mapping[int, Mark] = field(default_factory=dict)
    owner: int = 0
    deaths: int = 0

    def is_resolved(self, offset: int) -> bool:
        """Whether the offset's terminal event has been published."""
        return offset < self.base or bool(self.resolved >> (offset - self.base) & 1)

    def encode(self) -> str:
        """Encode the commit metadata: ASCII, at most ``MAX_METADATA_CHARACTERS``.

        Raises:
            CheckpointOverflowError: it does not fit.
        """
        version, encoding, body = _VERSION, *_shortest(self.resolved)
        raw = self._packed(version, encoding, body)
        if len(raw) > _MAX_BYTES:
            raw = self._packed(_VERSION_OF_SEGMENTS, _SEGMENTS, segments(self.resolved))
        text = base64.b64encode(raw + struct.pack(">I", zlib.crc32(raw))).decode().rstrip("=")
        if len(text) > MAX_METADATA_CHARACTERS:
            raise CheckpointOverflowError(f"a checkpoint of {len(text)} characters does not fit")
        return text

    def _packed(self, version: int, encoding: int, body: bytes) -> bytes:
        header = _HEADER.pack(version, self.base, self.owner, min(self.deaths, 255), encoding)
        parts = [header, _varint(len(body)), body]
        before = self.base
        for offset, mark in sorted(self.marks.items()):
            flags = mark.attempts << 3 | mark.suspect << 2 | mark.open << 1 | mark.alone
            parts.append(_varint(offset - before) + bytes((flags,)))
            if version == _VERSION_OF_SEGMENTS:
                # With long gaps, offsets relative to the base would be long too.
                before = offset
        return b"".join(parts)

    @staticmethod
    def decode(metadata: str, committed: int) -> Checkpoint:
        """Decode the metadata of a commit.

        Args:
            metadata: as committed.
            committed: the committed offset. A tool that resets offsets may keep the metadata, so the two must
                agree.

        Raises:
            ValueError: the metadata is not ours, is damaged, or belongs to another offset.
        """
        try:
            raw = base64.b64decode(metadata.encode("ascii") + b"=" * (-len(metadata) % 4), validate=True)
            if len(raw) < _HEADER.size + 4:
                raise ValueError("it is too short")
            raw, crc = raw[:-4], raw[-4:]
            if struct.pack(">I", zlib.crc32(raw)) != crc:
                raise ValueError("its checksum does not match")
            version, base, owner, deaths, encoding = _HEADER.unpack_from(raw)
            if version not in _VERSIONS:
                raise ValueError(f"it has version {version}; versions 1 to {_VERSION_OF_SEGMENTS} are known")
            if base != committed:
                raise ValueError(f"it was made for offset {base}, but the committed offset is {committed}")
            reader = _Reader(raw, _HEADER.size)
            body = reader.read(reader.varint())
            marks: dict[int, Mark] = {}
            before = base
            while not reader.done:
                offset, flags = before + reader.varint(), reader.read(1)[0]
                marks[offset] = Mark(flags >> 3 & 15, bool(flags & 4), bool(flags & 2), bool(flags & 1))
                if version != _VERSION:
                    before = offset
            resolved = _DECODERS[encoding](body)
        except (binascii.Error, struct.error, LookupError, UnicodeEncodeError) as error:
            raise ValueError(f"it cannot be parsed: {error}") from None
        return Checkpoint(base, resolved, marks, owner, deaths)


def _shortest(bits: int) -> tuple[int, bytes]:
    """Return the encoding and body of the shorter form: a bitmap or run lengths."""
    bitmap = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
    runs = b"".join(_varint(run) for run in _runs(bits))
    return (_BITMAP, bitmap) if len(bitmap) <= len(runs) else (_RUNS, runs)


def segments(bits: int) -> bytes:
    """Encode a bitmap without its long runs: for each, the bytes before it, its length and its value."""
    out = bytearray()
    position = end = 0
    for number, run in enumerate(_runs(bits)):
        start, end = end, end + run
        if run <= SEGMENT_BITS:
            continue
        length = (start - position + 7) // 8
        out += _varint(length) + (bits >> position & (1 << 8 * length) - 1).to_bytes(length, "little")
        position += 8 * length
        out += _varint((end - position) << 1 | number & 1)
        position = end
    rest = bits >> position
    length = (rest.bit_length() + 7) // 8
    return bytes(out + _varint(length) + rest.to_bytes(length, "little"))


def _from_segments(body: bytes, resolved_only: bool = False) -> int:
    reader = _Reader(body, 0)
    bits = position = 0
    while True:
        chunk = reader.read(reader.varint())
        bits |= int.from_bytes(chunk, "little") << position
        position += 8 * len(chunk)
        if reader.done:
            return bits
        length = reader.varint()
        resolved = resolved_only or length & 1
        length >>= not resolved_only
        if position + length > _MAX_GAP:
            raise ValueError("its runs are longer than any we write")
        if resolved:
            bits |= ((1 << length) - 1) << position
        position += length


def resolved_runs(bits: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each run of set bits, lowest first."""
    position = 0
    for number, length in enumerate(_runs(bits)):
        if number % 2:
            yield position, position + length
        position += length


def _runs(bits: int) -> list[int]:
    """Return the lengths of alternating runs, unresolved first, without trailing unresolved offsets."""
    # As text, lowest first: a search in it takes no longer for many runs than for one.
    text = bin(bits)[:1:-1] if bits else ""
    runs: list[int] = []
    position = 0
    while position < len(text):
        end = text.find("01"[len(runs) % 2 ^ 1], position)
        end = len(text) if end < 0 else end
        runs.append(end - position)
        position = end
    return runs


def _from_runs(body: bytes) -> int:
    reader = _Reader(body, 0)
    bits = position = value = 0
    while not reader.done:
        length = reader.varint()
        if position + length > _MAX_GAP:
            raise ValueError("its runs are longer than any we write")
        if value:
            bits |= ((1 << length) - 1) << position
        position += length
        value ^= 1
    return bits


_DECODERS: Mapping[int, Callable[[bytes], int]] = {
    _BITMAP: lambda body: int.from_bytes(body, "little"),
    _RUNS: _from_runs,
    _RESOLVED_SEGMENTS: partial(_from_segments, resolved_only=True),
    _SEGMENTS: _from_segments,
}


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class _Reader:
    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position

    @property
    def done(self) -> bool:
        return self._position >= len(self._data)

    def read(self, length: int) -> bytes:
        end = self._position + length
        if end > len(self._data):
            raise IndexError("it ends early")
        out = self._data[self._position : end]
        self._position = end
        return out

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.read(1)[0]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
            if shift > 63:
                raise IndexError("a number in it is too long")
