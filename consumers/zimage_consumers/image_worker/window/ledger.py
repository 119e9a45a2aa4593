"""The ledger of one partition: what was delivered, resolved and started, and who is charged for a death.
Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import Enum, auto

from zimage_stream.checkpoint import (
    MAX_ATTEMPTS,
    MAX_MARKS,
    SEGMENT_BITS,
    Checkpoint,
    Mark,
    resolved_runs,
    segments,
)

MAX_SPAN = 16_384
"""Largest distance between base and next offset, long gaps in the log not counted, together with the bits
that resolved offsets beyond take. A bitmap of this many bits always fits next to MAX_MARKS marks."""
MAX_AHEAD_BITS = MAX_SPAN // 4
"""Bits of a checkpoint for offsets that are resolved ahead of their turn; room for 60 to 100 runs."""
RESERVED_AHEAD_BITS = 1_536
"""Bits that fit besides MAX_SPAN, for offsets resolved ahead of their turn while the span is used up, as it
is behind any long backlog: room for about 20 runs."""
MAX_AHEAD = 1 << 20
"""Largest distance from the base to an offset resolved ahead of its turn, so that encoding takes no longer
than a few milliseconds."""
MAX_AHEAD_OPEN = 1_000
"""Largest number of offsets delivered ahead of their turn and not resolved yet. Neighbours take no bits, but
memory, for as long as no result can be written."""
_SLACK_BITS = 64
UNMARKED_DEATHS_LIMIT = 2
RECORDS_PER_TURN = 256
"""Records that a worker fetches and decodes before it marks anything. Where two owners died before marking
anything, the record that killed them is among the first this many."""


def take_over(found: Checkpoint, owner: int, died: bool) -> Checkpoint:
    """Turn the checkpoint of a previous owner into that of the process ``owner``.

    A previous owner that released the partition, or that only lost its membership, makes no request suspect
    by the marks it left open. One that died does: a request it ran alone is charged an attempt; requests it
    ran together with others become suspect and will run alone.

    Args:
        died: the previous owner died without releasing the partition.
    """
    running = [mark for mark in found.marks.values() if mark.open]
    marks = {offset: _after_death(mark) if died else _closed(mark) for offset, mark in found.marks.items()}
    deaths = found.deaths + 1 if died and not running else 0 if died else found.deaths
    return replace(found, marks=marks, owner=owner, deaths=deaths)


def release(held: Checkpoint) -> Checkpoint:
    """The checkpoint that an owner leaves behind on a clean release: nothing runs, nobody died."""
    return replace(held, marks={o: _closed(m) for o, m in held.marks.items()}, owner=0, deaths=0)


def _after_death(mark: Mark) -> Mark:
    if not mark.open:
        return mark
    spent = min(mark.attempts + 1, MAX_ATTEMPTS) if mark.alone else mark.attempts
    return Mark(attempts=spent, suspect=True)


def _closed(mark: Mark) -> Mark:
    return replace(mark, open=False, alone=False)


class OffsetStatus(Enum):
    """What a delivered offset means to this owner."""

    NEW = auto()
    RESOLVED = auto()
    SEEN = auto()


class Ledger:
    """The state of one partition while this process holds it.

    ``checkpoint`` is what the broker has, except for gaps in the log, which are facts and not decisions.
    It changes through :meth:`adopt`, after a commit has returned.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.next = checkpoint.base
        self._gaps = [
            (checkpoint.base + start, checkpoint.base + end)
            for start, end in resolved_runs(checkpoint.resolved)
            if end - start > SEGMENT_BITS
        ]
        """Start and end of each run of resolved offsets above the base that is long enough for a segment."""
        self._ahead: set[int] = set()
        """Offsets delivered ahead of their turn and not resolved yet."""
        self._beyond = self._bits_beyond()
        """Upper bound on :meth:`_bits_beyond`."""
        # The previous owner may have filled it to the limit.
        self._limit = max(MAX_SPAN, self._beyond - RESERVED_AHEAD_BITS + _SLACK_BITS)
        self._in_doubt = checkpoint.deaths >= UNMARKED_DEATHS_LIMIT
        self._new = 0

    @property
    def decode_under_mark(self) -> bool:
        """Whether the record observed last must be marked before it is decoded."""
        return self._in_doubt and self._new <= RECORDS_PER_TURN

    @property
    def full(self) -> bool:
        """Whether fetching must stop until the oldest requests are resolved."""
        base = self.checkpoint.base
        if self.next - base + self._unreserved < self._limit or self.next == base:
            return False
        self._gaps = [(start, end) for start, end in self._gaps if start >= base]
        # Some of them have been delivered in their turn since.
        self._beyond = self._bits_beyond()
        return self._bits_delivered() + self._unreserved >= self._limit

    @property
    def _unreserved(self) -> int:
        """Bits beyond ``next`` for which nothing is reserved."""
        return max(0, self._beyond - RESERVED_AHEAD_BITS)

    def room_ahead(self, offset: int) -> bool:
        """Whether the checkpoint has room to resolve this offset ahead of its turn."""
        if self._in_doubt or offset - self.checkpoint.base > MAX_AHEAD or len(self._ahead) >= MAX_AHEAD_OPEN:
            return False
        left = MAX_SPAN + RESERVED_AHEAD_BITS - self._bits_delivered()
        room = min(MAX_AHEAD_BITS, left) - self._bits_more(offset)
        if self._beyond > room:
            self._beyond = self._bits_beyond()
        return self._beyond <= room

    def take_ahead(self, offset: int) -> bool:
        """Record that an offset was delivered ahead of its turn.

        Returns:
            ``False`` where it does not count: it was delivered before, it is resolved, or there is no room.
        """
        seen = offset < self.next or offset in self._ahead or self.checkpoint.is_resolved(offset)
        if seen or not self.room_ahead(offset):
            return False
        self._beyond += self._bits_more(offset)
        self._ahead.add(offset)
        return True

    def _bits_more(self, offset: int) -> int:
        """Most bits that one more offset takes: none if it lengthens a run."""
        for each in (offset - 1, offset + 1):
            if each >= self.next and (each in self._ahead or self.checkpoint.is_resolved(each)):
                return 0
        return SEGMENT_BITS

    def _bits_delivered(self) -> int:
        """Bits that a checkpoint may need for the offsets from the base to ``next``."""
        past = [(start, end) for start, end in self._gaps if end <= self.next]
        return self.next - self.checkpoint.base - sum(end - start - SEGMENT_BITS for start, end in past)

    def _bits_beyond(self) -> int:
        """Bits that a checkpoint needs for offsets resolved or delivered from ``next`` on."""
        bits = self.checkpoint.resolved >> (self.next - self.checkpoint.base)
        for offset in self._ahead:
            bits |= 1 << (offset - self.next)
        return 8 * len(segments(bits)) if bits else 0

    def mark(self, offset: int) -> Mark:
        """The mark of a request; a blank one where there is none."""
        return self.checkpoint.marks.get(offset, Mark())

    def observe(self, offset: int) -> OffsetStatus:
        """Record that the broker delivered this offset.

        Offsets that it passed over do not exist (transaction markers, aborted or compacted records, deleted
        segments). They count as resolved, or the base would wait for them forever.
        """
        if offset < self.next:
            return OffsetStatus.SEEN
        if offset > self.next:
            self._pass_over(self.next, offset)
        self.next = offset + 1
        ahead = offset in self._ahead
        self._ahead.discard(offset)
        if self.checkpoint.is_resolved(offset):
            return OffsetStatus.RESOLVED
        if ahead:
            return OffsetStatus.SEEN
        self._new += 1
        return OffsetStatus.NEW

    def reach(self, end: int) -> None:
        """Record that the log has no more records before this offset."""
        if end > self.next:
            self._pass_over(self.next, end)

    def after(
        self, resolved: Iterable[int] = (), marks: Mapping[int, Mark | None] | None = None
    ) -> Checkpoint:
        """The checkpoint as it would be with these offsets resolved and these marks set (``None``:
        erased)."""
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
        """Replace the checkpoint by one that the broker has committed."""
        self.checkpoint = committed
        if self._ahead:
            self._ahead = {offset for offset in self._ahead if not committed.is_resolved(offset)}

    def _pass_over(self, start: int, end: int) -> None:
        held = self.checkpoint
        gap = ((1 << (end - start)) - 1) << (start - held.base)
        marks = {offset: mark for offset, mark in held.marks.items() if not start <= offset < end}
        self.checkpoint = replace(held, resolved=held.resolved | gap, marks=marks)
        if end - start > SEGMENT_BITS:
            self._gaps.append((start, end))
        self._ahead.difference_update([offset for offset in self._ahead if offset < end])
        # A gap at the base moves it at once, or a long gap would make the bitmap just as long.
        self.next = end
        self.checkpoint = self.after()


def _forget_surplus(marks: dict[int, Mark]) -> None:
    """Keep at most MAX_MARKS. Losing the mark of a request that waits for a retry can cost, if this process
    dies, one extra attempt; an open mark or a suspicion is never dropped for space."""
    surplus = len(marks) - MAX_MARKS
    if surplus > 0:
        idle = [offset for offset, mark in sorted(marks.items()) if not mark.open and not mark.suspect]
        for offset in idle[:surplus]:
            del marks[offset]
