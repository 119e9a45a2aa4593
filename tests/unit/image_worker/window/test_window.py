"""The window keeps track of its contents through every sequence of events."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tests.unit.image_worker.jobs import job
from zimage_consumers.image_worker.window.assignment import Assignment
from zimage_consumers.image_worker.window.jobs import Job, Stage
from zimage_consumers.image_worker.window.ledger import Ledger
from zimage_consumers.image_worker.window.window import UNDER_WAY, Window
from zimage_stream.checkpoint import Checkpoint

REQUESTS, SIZE = 12, 1 << 20
PARTITIONS = st.integers(0, 2)


class AnyLife(RuleBasedStateMachine):
    """Partitions come and go and their jobs advance, in any order."""

    entered = Bundle("entered")

    def __init__(self) -> None:
        super().__init__()
        self.window = Window(REQUESTS, SIZE)
        self.stages: dict[Job, Stage] = {}

    @rule(number=PARTITIONS)
    def begins(self, number: int) -> None:
        if number not in self.window.assignments:
            self.window.begin(Assignment(number, Ledger(Checkpoint(0)), informed=True))

    @rule(target=entered, number=PARTITIONS)
    def enters(self, number: int) -> Job:
        one = job(number)
        if number in self.window.assignments:
            one.assignment = self.window.assignments[number]
            self.window.enter(one)
            self.stages[one] = Stage.FETCHED
        return one

    @rule(one=entered, stage=st.sampled_from(Stage), open_=st.booleans())
    def moves(self, one: Job, stage: Stage, open_: bool) -> None:
        # Reports of the engine and the store may concern a job that has left.
        self.window.move(one, stage)
        one.open = open_
        if one in self.stages:
            self.stages[one] = stage

    @rule(one=consumes(entered))
    def exits(self, one: Job) -> None:
        self.window.exit(one)
        self.stages.pop(one, None)

    @rule(numbers=st.sets(PARTITIONS))
    def leaves(self, numbers: set[int]) -> None:
        held = self.window.assignments.keys() & numbers
        assert self.window.leave(numbers) == held
        gone = [one for one in self.stages if one.record.partition in numbers]
        assert all(one.gone for one in gone)
        for one in gone:
            del self.stages[one]

    @rule(number=PARTITIONS)
    def is_given_back(self, number: int) -> None:
        if number in self.window.assignments:
            self.window.assignments[number].leaving = True

    def there(self, *stages: Stage) -> set[Job]:
        return {one for one, stage in self.stages.items() if stage in stages}

    @invariant()
    def each_job_is_in_its_stage_alone(self) -> None:
        for stage in Stage:
            assert set(self.window.jobs(stage)) == self.there(stage)
        assert all(one.stage is stage for one, stage in self.stages.items())

    @invariant()
    def each_job_is_found_by_its_offset(self) -> None:
        for one in self.stages:
            assert self.window.find(one.record.partition, one.record.offset) is one

    @invariant()
    def what_is_under_way_is_known(self) -> None:
        assert self.window.under_way is bool(self.there(*UNDER_WAY))
        assert set(self.window.open()) == {one for one in self.there(*UNDER_WAY) if one.open}
        leaving = {one for one in self.there(*UNDER_WAY) if one.assignment.leaving}
        assert self.window.leaving_under_way is bool(leaving)

    @invariant()
    def each_partition_is_counted_without_what_is_held_back(self) -> None:
        counted = {one for one, stage in self.stages.items() if stage is not Stage.HELD_BACK}
        for number, each in self.window.assignments.items():
            theirs = [one for one in counted if one.record.partition == number]
            assert (each.count, each.size) == (len(theirs), sum(one.size for one in theirs))
        held_back = self.there(Stage.HELD_BACK)
        assert self.window.held_back_size == sum(one.size for one in held_back)

    @invariant()
    def no_partition_takes_more_than_its_share(self) -> None:
        paused = self.window.to_pause()
        shares = len(self.window.assignments)
        for number, each in self.window.assignments.items():
            filled = max(each.count * shares / REQUESTS, each.size * shares / SIZE)
            if each.leaving or filled >= 1:
                assert number in paused
            elif filled < 0.5:
                assert number not in paused


TestAnyLife = AnyLife.TestCase


def test_nothing_is_fetched_before_the_cancellations_are_known() -> None:
    window = Window(100, 1 << 20)
    window.begin(Assignment(0, Ledger(Checkpoint(0))))
    assert window.to_pause() == {0}
    window.assignments[0].informed = True
    assert window.to_pause() == set()
