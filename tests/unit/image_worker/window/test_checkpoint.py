"""The checkpoint: what is committed is read back unchanged, and nothing resolved is done again."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zimage_consumers.image_worker.window.ledger import (
    MAX_AHEAD_OPEN,
    MAX_SPAN,
    RECORDS_PER_TURN,
    UNMARKED_DEATHS_LIMIT,
    Ledger,
    OffsetStatus,
    release,
    take_over,
)
from zimage_stream.checkpoint import (
    MAX_MARKS,
    MAX_METADATA_CHARACTERS,
    Checkpoint,
    CheckpointOverflowError,
    Mark,
)

bases = st.integers(0, 2**62)
marks = st.builds(Mark, st.integers(0, 15), st.booleans(), st.booleans(), st.booleans())


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    base = draw(bases)
    resolved = draw(st.sets(st.integers(1, 300)).map(lambda offsets: sum(1 << o for o in offsets)))
    unresolved = st.integers(0, 400).filter(lambda o: not resolved >> o & 1)
    noted = draw(st.dictionaries(unresolved.map(lambda o: base + o), marks, max_size=20))
    return Checkpoint(base, resolved, noted, draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 255)))


class TestEncoding:
    @given(checkpoints())
    def test_is_read_back_unchanged(self, checkpoint: Checkpoint) -> None:
        assert Checkpoint.decode(checkpoint.encode(), checkpoint.base) == checkpoint

    @given(st.integers(0, 2**MAX_SPAN - 1), st.lists(marks, min_size=MAX_MARKS, max_size=MAX_MARKS))
    @settings(max_examples=30)
    def test_a_full_span_with_all_marks_fits(self, resolved: int, noted: list[Mark]) -> None:
        # Marks that are as far apart as possible take the most room.
        step = MAX_SPAN // MAX_MARKS
        placed = {step * i: mark for i, mark in enumerate(noted)}
        text = Checkpoint(2**62, resolved, {2**62 + o: m for o, m in placed.items()}, 2**32 - 1).encode()
        assert len(text) <= MAX_METADATA_CHARACTERS
        assert text.isascii()

    def test_one_of_version_2_is_still_read(self) -> None:
        # Written by a release that left out resolved runs only.
        text = "AgAAAAAAAAAHAAAABQACCQUKAAAAAPQDAAAI2AQCME11Jw"
        resolved = 0b1010 | ((1 << 500) - 1) << 40
        noted = {7: Mark(1), 607: Mark(open=True)}
        assert Checkpoint.decode(text, 7) == Checkpoint(7, resolved, noted, owner=5)

    def test_a_checkpoint_that_does_not_fit_is_an_error_and_never_cut(self) -> None:
        alternating = int("01" * 2 * MAX_SPAN, 2)
        with pytest.raises(CheckpointOverflowError):
            Checkpoint(0, alternating).encode()

    @given(
        st.lists(
            st.tuples(st.integers(0, 3_000), st.integers(0, 100_000) | st.just(0)), min_size=1, max_size=40
        ),
        st.integers(0, 2**32),
    )
    @settings(max_examples=30)
    def test_a_checkpoint_fits_until_its_ledger_is_full_whatever_is_resolved(
        self, stretches: list[tuple[int, int]], seed: int
    ) -> None:
        random = Random(seed)
        ledger = Ledger(Checkpoint(0, owner=2**32 - 1))
        taken: list[int] = []
        for records, gap in stretches:
            for offset in range(ledger.next, ledger.next + records):
                if not ledger.full:
                    ledger.observe(offset)
                    taken.append(offset)
            if not ledger.full:
                ledger.reach(ledger.next + gap)
        resolved = [offset for offset in taken[1:] if random.random() < 0.5]
        unresolved = sorted(set(taken) - set(resolved))
        noted = random.sample(unresolved, min(MAX_MARKS, len(unresolved)))
        after = ledger.after(resolved, {offset: Mark(3, suspect=True, open=True) for offset in noted})
        assert Checkpoint.decode(after.encode(), after.base) == after
        # The next owner stops at the same point.
        assert Ledger(after).full or Checkpoint.decode(Ledger(after).checkpoint.encode(), after.base) == after

    @given(
        st.integers(0, MAX_SPAN),
        st.lists(st.integers(0, 50_000) | st.integers(0, 3), max_size=400),
        st.integers(0, 2**32),
    )
    @settings(max_examples=30)
    def test_a_checkpoint_fits_whatever_is_resolved_ahead_of_its_turn(
        self, delivered: int, distances: list[int], seed: int
    ) -> None:
        random = Random(seed)
        ledger = Ledger(Checkpoint(0, owner=2**32 - 1))
        half = delivered // 2
        for offset in range(half):
            ledger.observe(offset)
        ahead, offset = [], ledger.next + MAX_SPAN
        for distance in distances:
            offset += 1 + distance
            if ledger.take_ahead(offset):
                ahead.append(offset)
        for offset in range(half, delivered):
            if not ledger.full:
                ledger.observe(offset)
        resolved = [offset for offset in range(1, ledger.next) if random.random() < 0.5]
        unresolved = sorted(set(range(ledger.next)) - set(resolved))
        noted = random.sample(unresolved, min(MAX_MARKS, len(unresolved)))
        marked = {offset: Mark(3, suspect=True, open=True) for offset in noted}
        after = ledger.after([*resolved, *ahead], marked)
        assert Checkpoint.decode(after.encode(), after.base) == after

    def test_a_gap_above_many_single_requests_fits(self) -> None:
        ledger = Ledger(Checkpoint(0))
        for offset in range(3_500):
            ledger.observe(offset)
        ledger.adopt(ledger.after(range(1, 3_500, 2)))
        ledger.observe(43_500)
        marked = ledger.after(marks={43_500: Mark(open=True)})
        assert Checkpoint.decode(marked.encode(), 0) == marked
        assert not ledger.full

    def test_a_long_gap_in_the_log_costs_little(self) -> None:
        assert len(Checkpoint(0, ((1 << 10**6) - 1) << 1).encode()) < 60

    @given(checkpoints(), st.integers(1, 2**40))
    def test_a_checkpoint_at_a_different_offset_is_not_trusted(
        self, checkpoint: Checkpoint, moved: int
    ) -> None:
        with pytest.raises(ValueError, match="but the committed offset is"):
            Checkpoint.decode(checkpoint.encode(), checkpoint.base + moved)

    @given(checkpoints(), st.data())
    def test_a_damaged_checkpoint_is_refused(self, checkpoint: Checkpoint, data: st.DataObject) -> None:
        text = checkpoint.encode()
        # The last character has padding bits that mean nothing; any other one carries content.
        at = data.draw(st.integers(0, len(text) - 2))
        other = data.draw(st.sampled_from("ABCdef019+/").filter(lambda c: c != text[at]))
        with pytest.raises(ValueError, match=r"^it"):
            Checkpoint.decode(text[:at] + other + text[at + 1 :], checkpoint.base)

    @given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin1")))
    def test_foreign_metadata_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"^it"):
            Checkpoint.decode(text, 5)


class TestTakeOver:
    ME, OTHER = 7, 8

    def taken(self, mark: Mark, owner: int, deaths: int = 0) -> Checkpoint:
        died = owner == self.OTHER
        return take_over(Checkpoint(10, 0, {10: mark}, owner, deaths), self.ME, died)

    def test_after_a_death_a_request_that_ran_alone_is_charged(self) -> None:
        after = self.taken(Mark(1, suspect=True, open=True, alone=True), self.OTHER)
        assert after.marks[10] == Mark(2, suspect=True)

    def test_after_a_death_requests_that_ran_together_become_suspect_and_are_not_charged(self) -> None:
        assert self.taken(Mark(1, open=True), self.OTHER).marks[10] == Mark(1, suspect=True)

    def test_after_a_death_requests_that_were_not_running_are_not_suspect(self) -> None:
        assert self.taken(Mark(1), self.OTHER).marks[10] == Mark(1)

    @pytest.mark.parametrize("owner", [0, ME])
    def test_an_owner_that_released_the_partition_or_is_alive_makes_no_request_suspect(
        self, owner: int
    ) -> None:
        after = self.taken(Mark(1, open=True, alone=True), owner)
        assert after.marks[10] == Mark(1)

    def test_after_two_deaths_before_any_mark_records_are_decoded_under_marks(self) -> None:
        found = Checkpoint(10, owner=self.OTHER)
        for death in range(UNMARKED_DEATHS_LIMIT):
            assert not Ledger(found).decode_under_mark
            found = take_over(found, self.ME + death + 10, died=True)
        ledger = Ledger(found)
        assert ledger.decode_under_mark
        for offset in range(10, 10 + RECORDS_PER_TURN):
            ledger.observe(offset)
            assert ledger.decode_under_mark
        ledger.observe(10 + RECORDS_PER_TURN)
        assert not ledger.decode_under_mark

    def test_progress_resets_the_count_of_deaths(self) -> None:
        ledger = Ledger(Checkpoint(10, owner=self.ME, deaths=1))
        ledger.observe(10)
        assert ledger.after([10]).deaths == 0

    @given(checkpoints())
    def test_a_release_leaves_nothing_running(self, held: Checkpoint) -> None:
        left = release(held)
        assert left.owner == 0
        assert not any(mark.open for mark in left.marks.values())
        assert {o: m.attempts for o, m in left.marks.items()} == {
            o: m.attempts for o, m in held.marks.items()
        }


class LedgerMachine(RuleBasedStateMachine):
    """A partition with gaps, served in any order, and taken over after crashes at any point.

    The model is two sets; the ledger must agree with them at all times.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log: list[int] = []
        self.end = 0
        self.published: set[int] = set()
        self.committed = (0, Checkpoint(0, owner=1).encode())
        self.owner = 1
        self.ledger = Ledger(Checkpoint(0, owner=1))
        self.running: set[int] = set()
        self.position = 0

    @rule(gap=st.integers(0, 5))
    def produce(self, gap: int) -> None:
        self.log.append(self.end + gap)
        self.end += gap + 1

    @precondition(lambda self: self.position < len(self.log))
    @rule()
    def deliver(self) -> None:
        offset = self.log[self.position]
        self.position += 1
        taken = self.ledger.observe(offset)
        if offset in self.published:
            assert taken is OffsetStatus.RESOLVED
        elif offset in self.running:
            assert taken is OffsetStatus.SEEN
        else:
            assert taken is OffsetStatus.NEW
            self.running.add(offset)

    @precondition(lambda self: self.position < len(self.log))
    @rule(data=st.data())
    def deliver_ahead(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(self.log[self.position :]))
        known = offset in self.published | self.running
        if self.ledger.take_ahead(offset):
            assert not known
            self.running.add(offset)
        else:
            assert known or self.ledger.checkpoint.deaths >= UNMARKED_DEATHS_LIMIT

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def mark(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sets(st.sampled_from(sorted(self.running)), min_size=1))
        self.commit(
            self.ledger.after(marks={o: Mark(self.ledger.mark(o).attempts, open=True) for o in chosen})
        )

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        done = data.draw(st.sets(st.sampled_from(sorted(self.running)), min_size=1))
        after = self.ledger.after(done)
        self.running -= done
        self.published |= done
        self.commit(after)

    def commit(self, after: Checkpoint) -> None:
        self.committed = (after.base, after.encode())
        self.ledger.adopt(after)

    @rule(clean=st.booleans())
    def change_hands(self, clean: bool) -> None:
        if clean:
            self.commit(release(self.ledger.checkpoint))
        self.owner += 1
        base, metadata = self.committed
        self.ledger = Ledger(take_over(Checkpoint.decode(metadata, base), self.owner, died=not clean))
        self.running = set()
        self.position = next((i for i, offset in enumerate(self.log) if offset >= base), len(self.log))

    @invariant()
    def no_unresolved_record_is_skipped(self) -> None:
        lost = [o for o in self.log if o not in self.published and self.ledger.checkpoint.is_resolved(o)]
        assert lost == []

    @invariant()
    def base_is_the_lowest_unresolved_or_the_position(self) -> None:
        delivered = [o for o in self.log if o < self.ledger.next and o not in self.published]
        after = self.ledger.after()
        assert after.base == min(delivered, default=self.ledger.next)

    @invariant()
    def marks_are_of_unresolved_offsets_only(self) -> None:
        assert not self.ledger.checkpoint.marks.keys() & self.published


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class TestLedgerEdges:
    def test_a_record_delivered_twice_is_new_only_once(self) -> None:
        ledger = Ledger(Checkpoint(0))
        assert ledger.observe(0) is OffsetStatus.NEW
        assert ledger.observe(0) is OffsetStatus.SEEN

    def test_reaching_the_end_of_the_log_resolves_offsets_without_records(self) -> None:
        ledger = Ledger(Checkpoint(0))
        ledger.observe(0)
        ledger.adopt(ledger.after([0]))
        ledger.reach(3)
        assert ledger.checkpoint.base == ledger.next == 3
        ledger.reach(2)
        assert ledger.next == 3

    def test_a_long_gap_does_not_fill_it(self) -> None:
        ledger = Ledger(Checkpoint(0))
        ledger.observe(0)
        ledger.observe(10 * MAX_SPAN)
        assert not ledger.full

    def test_it_is_full_at_its_span_and_not_before(self) -> None:
        ledger = Ledger(Checkpoint(0))
        for offset in range(MAX_SPAN - 1):
            ledger.observe(offset)
        assert not ledger.full
        ledger.observe(MAX_SPAN - 1)
        assert ledger.full

    def test_an_offset_delivered_ahead_is_not_delivered_again(self) -> None:
        ledger = Ledger(Checkpoint(0))
        assert ledger.take_ahead(100)
        assert not ledger.take_ahead(100)
        for offset in range(100):
            assert ledger.observe(offset) is OffsetStatus.NEW
        assert ledger.observe(100) is OffsetStatus.SEEN
        assert not ledger.take_ahead(100)

    def test_neighbours_resolved_ahead_take_no_more_room_than_one(self) -> None:
        ledger = Ledger(Checkpoint(0))
        for offset in range(100_000, 110_000, 500):
            for each in range(offset, offset + 500):
                assert ledger.take_ahead(each)
            ledger.adopt(ledger.after(range(offset, offset + 500)))
        assert len(ledger.checkpoint.encode()) < 60

    def test_room_ahead_ends_before_the_checkpoint_does_and_comes_back(self) -> None:
        ledger = Ledger(Checkpoint(0))
        scattered = range(100_000, 200_000, 200)
        taken = [offset for offset in scattered if ledger.take_ahead(offset)]
        assert 50 < len(taken) < len(scattered)
        ledger.adopt(ledger.after(taken))
        ledger.reach(taken[-1] + 1)
        assert ledger.take_ahead(scattered[-1])

    def test_no_more_is_delivered_ahead_than_memory_should_hold_until_some_is_resolved(self) -> None:
        ledger = Ledger(Checkpoint(0))
        neighbours = range(100_000, 200_000)
        taken = [offset for offset in neighbours if ledger.take_ahead(offset)]
        assert len(taken) == MAX_AHEAD_OPEN
        ledger.adopt(ledger.after(taken))
        assert ledger.take_ahead(taken[-1] + 1)

    def test_one_that_is_full_has_room_ahead(self) -> None:
        ledger = Ledger(Checkpoint(0))
        while not ledger.full:
            ledger.observe(ledger.next)
        taken = [offset for offset in range(100_000, 200_000, 200) if ledger.take_ahead(offset)]
        assert 15 < len(taken) < 50
        ledger.adopt(ledger.after([*range(1, ledger.next, 2), *taken]))
        assert Checkpoint.decode(ledger.checkpoint.encode(), 0) == ledger.checkpoint

    def test_a_full_one_is_not_full_for_its_next_owner_before_it_has_any_work(self) -> None:
        ledger = Ledger(Checkpoint(0))
        while not ledger.full:
            ledger.observe(ledger.next)
        ledger.adopt(ledger.after(range(1, ledger.next, 2)))
        following = Ledger(ledger.checkpoint)
        delivered = [
            offset for offset in range(ledger.next) if not following.full and following.observe(offset)
        ]
        assert len(delivered) > MAX_SPAN - 100

    def test_marks_of_waiting_requests_are_dropped_before_the_checkpoint_overflows(self) -> None:
        ledger = Ledger(Checkpoint(0))
        for offset in range(MAX_MARKS + 50):
            ledger.observe(offset)
        noted = {offset: Mark(1) for offset in range(MAX_MARKS + 49)}
        after = ledger.after(marks={**noted, MAX_MARKS + 49: Mark(open=True)})
        assert len(after.marks) == MAX_MARKS
        assert after.marks[MAX_MARKS + 49].open
