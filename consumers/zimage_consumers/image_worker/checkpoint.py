"""What a partition's commit says, and the ledger that makes it.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from zimage_stream.errors import ZImageError

MAX_METADATA_CHARACTERS = 3_800
"""The broker refuses 4,096 bytes; the rest is for its own header."""
MAX_SPAN = 16_384
"""Offsets between base and next, long gaps in the log not counted. A bitmap of that many bits always fits
beside MAX_MARKS marks."""
GONE_BACK = "gone back: "
"""Begins the metadata of a commit whose partition is stopped, since its log went back, with the reason behind
it: whoever takes it over must know. A reset of the offset takes it away."""
MAX_MARKS = 160
MAX_ATTEMPTS = 15
CAUTIOUS_DEATHS = 2
RECORDS_A_TURN = 256
"""Records that a worker takes and decodes before it marks anything: where two holders died before any mark,
what killed them is among the first so many."""

_MAX_GAP = 1 << 28
"""Bits in memory while a gap in the log is passed over; a damaged length must not ask for more."""
_VERSION = 1
_BITMAP, _RUNS = 0, 1
_VERSION_OF_SEGMENTS = 2
"""Written only where the other encodings do not fit; a reader that knows version 1 refuses it."""
_SEGMENTS = 2
_SEGMENT_BITS = 72
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


def take_over(found: Checkpoint, owner: int, died: bool) -> Checkpoint:
    """The checkpoint as the process ``owner`` takes it over from whoever held it.

    A holder that let go cleanly, and one that only lost its membership, accuse nobody by the marks they left
    open. One that died does: what it ran alone is charged an attempt, what it ran in company is suspect and
    will run alone.

    Args:
        died: the process that held it is gone, and did not let go.
    """
    running = [mark for mark in found.marks.values() if mark.open]
    marks = {offset: _after_death(mark) if died else _closed(mark) for offset, mark in found.marks.items()}
    deaths = found.deaths + 1 if died and not running else 0 if died else found.deaths
    return replace(found, marks=marks, owner=owner, deaths=deaths)


def release(held: Checkpoint) -> Checkpoint:
    """The checkpoint a holder leaves behind that goes cleanly: nothing runs, nobody died."""
    return replace(held, marks={o: _closed(m) for o, m in held.marks.items()}, owner=0, deaths=0)


def _after_death(mark: Mark) -> Mark:
    if not mark.open:
        return mark
    spent = min(mark.attempts + 1, MAX_ATTEMPTS) if mark.alone else mark.attempts
    return Mark(attempts=spent, suspect=True)


def _closed(mark: Mark) -> Mark:
    return replace(mark, open=False, alone=False)


class Taken(Enum):
    """What a delivered offset is to this holder."""

    NEW = auto()
    RESOLVED = auto()
    SEEN = auto()


class Ledger:
    """One partition while this process holds it.

    ``checkpoint`` is what the broker has, but for gaps in the log, which are facts and no decision.
    It changes by :meth:`adopt`, after a commit returned.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.next = checkpoint.base
        self._gaps = [
            (checkpoint.base + start, checkpoint.base + end)
            for start, end in _resolved_runs(checkpoint.resolved)
            if end - start > _SEGMENT_BITS
        ]
        """Start and end of each run of resolved offsets above the base that is worth a segment."""
        self._in_doubt = checkpoint.deaths >= CAUTIOUS_DEATHS
        self._new = 0

    @property
    def cautious(self) -> bool:
        """Whether the record taken last is to be marked before it is decoded."""
        return self._in_doubt and self._new <= RECORDS_A_TURN

    @property
    def full(self) -> bool:
        """Whether fetching must stop until the oldest requests are resolved."""
        base = self.checkpoint.base
        span = self.next - base
        if span < MAX_SPAN:
            return False
        self._gaps = [(start, end) for start, end in self._gaps if start >= base]
        return span - sum(end - start - _SEGMENT_BITS for start, end in self._gaps) >= MAX_SPAN

    def mark(self, offset: int) -> Mark:
        """The note on a request; a blank one where there is none."""
        return self.checkpoint.marks.get(offset, Mark())

    def take(self, offset: int) -> Taken:
        """Note that the broker delivered this offset.

        Offsets that it passed over do not exist (transaction markers, aborted or compacted records,
        deleted segments): they count as resolved, or the base would wait for them for ever.
        """
        if offset < self.next:
            return Taken.SEEN
        if offset > self.next:
            self._pass_over(self.next, offset)
        self.next = offset + 1
        if self.checkpoint.is_resolved(offset):
            return Taken.RESOLVED
        self._new += 1
        return Taken.NEW

    def reach(self, end: int) -> None:
        """Note that the log has no more records before this offset."""
        if end > self.next:
            self._pass_over(self.next, end)

    def after(
        self, resolved: Iterable[int] = (), marks: Mapping[int, Mark | None] | None = None
    ) -> Checkpoint:
        """The checkpoint as it would be with these offsets resolved and these marks set (None: erased)."""
        held = self.checkpoint
        bits = held.resolved
        kept = dict(held.marks)
        progress = False
        for offset in resolved:
            progress = True
            kept.pop(offset, None)
            if offset >= held.base:
                bits |= 1 << (offset - held.base)
        for offset, mark in (marks or {}).items():
            if mark is None or mark == Mark():
                kept.pop(offset, None)
            else:
                kept[offset] = mark
        _forget_surplus(kept)
        advance = min((~bits & (bits + 1)).bit_length() - 1, self.next - held.base)
        return Checkpoint(
            held.base + advance, bits >> advance, kept, held.owner, 0 if progress else held.deaths
        )

    def adopt(self, committed: Checkpoint) -> None:
        """The broker has this checkpoint now."""
        self.checkpoint = committed

    def _pass_over(self, start: int, end: int) -> None:
        held = self.checkpoint
        gap = ((1 << (end - start)) - 1) << (start - held.base)
        marks = {offset: mark for offset, mark in held.marks.items() if not start <= offset < end}
        self.checkpoint = replace(held, resolved=held.resolved | gap, marks=marks)
        if end - start > _SEGMENT_BITS:
            self._gaps.append((start, end))
        # A gap at the base moves it at once, or a long one would make the bitmap as long.
        self.next = end
        self.checkpoint = self.after()


def _forget_surplus(marks: dict[int, Mark]) -> None:
    """Keep at most MAX_MARKS. Losing the note of a request that waits for a retry costs, should this
    process die, one attempt more than it was due; an open mark or a suspicion is never lost for it."""
    surplus = len(marks) - MAX_MARKS
    if surplus > 0:
        idle = [offset for offset, mark in sorted(marks.items()) if not mark.open and not mark.suspect]
        for offset in idle[:surplus]:
            del marks[offset]


def _shortest(bits: int) -> tuple[int, bytes]:
    """Encoding and body: as a bitmap or as lengths of runs."""
    bitmap = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
    runs = b"".join(_varint(run) for run in _runs(bits))
    return (_BITMAP, bitmap) if len(bitmap) <= len(runs) else (_RUNS, runs)


def _segments(bits: int) -> bytes:
    """A bitmap without its long runs of resolved offsets: for each the bytes before it, and its length."""
    out = bytearray()
    position = 0
    for start, end in _resolved_runs(bits):
        if end - start <= _SEGMENT_BITS:
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


def _resolved_runs(bits: int) -> Iterator[tuple[int, int]]:
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
