"""The checkpoint of a partition: what its offset commit says, and its wire form.

A Kafka offset commit is one number; requests finish in any order. So the commit's *metadata* carries
the rest: which offsets above the base are resolved already, and a mark for each unresolved request
that was started. Whoever takes the partition over skips exactly what is resolved, and knows from the
open marks what was running when its predecessor died.

Everything here is pure: values in, values out.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from zimage_stream.errors import ZImageError

MAX_METADATA_CHARACTERS = 3_800
"""The broker refuses 4,096 bytes; the rest is for its own header."""
GONE_BACK = "gone back: "
"""Begins the metadata of a commit whose partition is stopped, since its log went back, with the reason behind
it: whoever takes it over must know. A reset of the offset takes it away."""
MAX_MARKS = 160
MAX_ATTEMPTS = 15

_MAX_GAP = 1 << 28
"""Bits in memory while a gap in the log is passed over; a damaged length must not ask for more."""
_VERSION = 1
_BITMAP, _RUNS = 0, 1
_VERSION_OF_SEGMENTS = 2
"""Written only where the other encodings do not fit; a reader that knows version 1 refuses it."""
_SEGMENTS = 2
SEGMENT_BITS = 72
"""What a segment costs at the most beside the bits in it: two numbers, what is left of its last byte, and the
longer way to a mark behind it. A resolved run that is longer is worth one."""
_HEADER = struct.Struct(">BQIBB")  # version, base, owner, deaths, encoding of the resolved set
_MAX_BYTES = MAX_METADATA_CHARACTERS * 3 // 4 - 4  # base64, and a checksum


class CheckpointOverflowError(ZImageError):
    """The checkpoint does not fit into the commit's metadata."""


@dataclass(frozen=True, slots=True)
class Mark:
    """An unresolved request's note in the checkpoint.

    Attributes:
        attempts: starts that are charged to it, 0 to 15.
        suspect: it was running when a process died; it runs alone from now on.
        open: it is running now, as far as the log knows.
        alone: nothing else was running in that process.
    """

    attempts: int = 0
    suspect: bool = False
    open: bool = False
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of one partition as committed.

    Attributes:
        base: lowest offset that is not known to be resolved; the committed offset itself.
        resolved: bit i says that offset ``base + i`` is resolved.
        marks: by offset.
        owner: 32-bit nonce of the process that holds the partition, 0 once it let go cleanly.
        deaths: holders in a row that died here with no mark open and nothing resolved.
    """

    base: int
    resolved: int = 0
    marks: Mapping[int, Mark] = field(default_factory=dict)
    owner: int = 0
    deaths: int = 0

    def is_resolved(self, offset: int) -> bool:
        """Whether the offset's terminal event is out."""
        return offset < self.base or bool(self.resolved >> (offset - self.base) & 1)

    def encode(self) -> str:
        """The commit metadata: ASCII, at most ``MAX_METADATA_CHARACTERS``.

        Raises:
            CheckpointOverflowError: it does not fit.
        """
        version, encoding, body = _VERSION, *_shortest(self.resolved)
        raw = self._packed(version, encoding, body)
        if len(raw) > _MAX_BYTES:
            raw = self._packed(_VERSION_OF_SEGMENTS, _SEGMENTS, _segments(self.resolved))
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
                # Where gaps are long, so are offsets from the base.
                before = offset
        return b"".join(parts)

    @staticmethod
    def decode(metadata: str, committed: int) -> Checkpoint:
        """Read a commit back.

        Args:
            metadata: as committed.
            committed: the offset beside it. A tool that moves offsets leaves the metadata, so the
                two must agree.

        Raises:
            ValueError: it is not ours, damaged, or stands beside another offset.
        """
        try:
            raw = base64.b64decode(metadata.encode("ascii") + b"=" * (-len(metadata) % 4), validate=True)
            if len(raw) < _HEADER.size + 4:
                raise ValueError("it is too short")
            raw, crc = raw[:-4], raw[-4:]
            if struct.pack(">I", zlib.crc32(raw)) != crc:
                raise ValueError("its checksum does not match")
            version, base, owner, deaths, encoding = _HEADER.unpack_from(raw)
            if version not in (_VERSION, _VERSION_OF_SEGMENTS):
                raise ValueError(f"it has version {version}, known are {_VERSION} and {_VERSION_OF_SEGMENTS}")
            if base != committed:
                raise ValueError(f"it was made for offset {base} and stands beside {committed}")
            reader = _Reader(raw, _HEADER.size)
            body = reader.take(reader.varint())
            marks: dict[int, Mark] = {}
            before = base
            while not reader.done:
                offset, flags = before + reader.varint(), reader.take(1)[0]
                marks[offset] = Mark(flags >> 3 & 15, bool(flags & 4), bool(flags & 2), bool(flags & 1))
                if version == _VERSION_OF_SEGMENTS:
                    before = offset
            resolved = _DECODERS[encoding](body)
        except (binascii.Error, struct.error, LookupError, UnicodeEncodeError) as error:
            raise ValueError(f"it does not parse: {error}") from None
        return Checkpoint(base, resolved, marks, owner, deaths)


def _shortest(bits: int) -> tuple[int, bytes]:
    """Encoding and body: as a bitmap or as lengths of runs."""
    bitmap = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
    runs = b"".join(_varint(run) for run in _runs(bits))
    return (_BITMAP, bitmap) if len(bitmap) <= len(runs) else (_RUNS, runs)


def _segments(bits: int) -> bytes:
    """A bitmap without its long runs of resolved offsets: for each the bytes before it, and its length."""
    out = bytearray()
    position = 0
    for start, end in resolved_runs(bits):
        if end - start <= SEGMENT_BITS:
            continue
        length = max(0, start - position + 7) // 8
        out += _varint(length) + (bits >> position & (1 << 8 * length) - 1).to_bytes(length, "little")
        position += 8 * length
        out += _varint(end - position)
        position = end
    rest = bits >> position
    length = (rest.bit_length() + 7) // 8
    return bytes(out + _varint(length) + rest.to_bytes(length, "little"))


def _from_segments(body: bytes) -> int:
    reader = _Reader(body, 0)
    bits = position = 0
    while True:
        chunk = reader.take(reader.varint())
        bits |= int.from_bytes(chunk, "little") << position
        position += 8 * len(chunk)
        if reader.done:
            return bits
        length = reader.varint()
        if position + length > _MAX_GAP:
            raise ValueError("its runs are longer than any we write")
        bits |= ((1 << length) - 1) << position
        position += length


def resolved_runs(bits: int) -> Iterator[tuple[int, int]]:
    """Start and end of each run of set bits, lowest first."""
    position = 0
    for number, length in enumerate(_runs(bits)):
        if number % 2:
            yield position, position + length
        position += length


def _runs(bits: int) -> list[int]:
    """Lengths of alternating runs, unresolved first; trailing unresolved ones are left out."""
    runs: list[int] = []
    value = 0
    while bits:
        same = bits if value == 0 else ~bits
        length = (same & -same).bit_length() - 1
        runs.append(length)
        bits >>= length
        value ^= 1
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

    def take(self, length: int) -> bytes:
        end = self._position + length
        if end > len(self._data):
            raise IndexError("it ends early")
        out = self._data[self._position : end]
        self._position = end
        return out

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
            if shift > 63:
                raise IndexError("a number in it is too long")
