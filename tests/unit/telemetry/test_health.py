from __future__ import annotations

import pytest

from zimage_stream.telemetry.health import CALL_BOUND_S, HEARTBEAT_BOUND_S, PATIENCE_S, Health


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    """The health of a worker that has started."""
    health = Health(clock)
    health.set_started()
    return health


class TestReady:
    def test_a_worker_without_its_model_is_not_ready(self, clock: Clock) -> None:
        health = Health(clock)
        assert health.ready() == (False, ["the model is loading"])
        health.set_started()
        assert health.ready() == (True, [])

    def test_reasons_are_shortened_and_keep_their_ends(self, health: Health) -> None:
        said = "x" * (4 << 20)
        health.down("registry", f"it answered: {said}")
        health.hold("held-back", f"held back, the latest with {said}. Fix it; then release")
        ready, reasons = health.ready()
        assert not ready
        assert sum(map(len, reasons)) < 5_000
        assert "it answered: x" in reasons[0]
        assert "Fix it; then release" in reasons[1]

    def test_a_dependency_is_down_until_it_answers(self, health: Health, clock: Clock) -> None:
        assert health.is_up("store")
        health.down("store", "connection refused")
        clock.now += 7
        assert not health.is_up("store")
        assert health.ready() == (False, ["store has been down for 7 s: connection refused"])
        health.up("store")
        assert health.is_up("store")
        assert health.ready() == (True, [])

    def test_an_outage_counts_from_its_start_and_shows_its_latest_reason(
        self, health: Health, clock: Clock
    ) -> None:
        health.down("kafka", "timed out")
        clock.now += 5
        health.down("kafka", "connection refused")
        assert health.ready()[1] == ["kafka has been down for 5 s: connection refused"]
        health.up("kafka")
        health.down("kafka", "timed out")
        assert health.ready()[1] == ["kafka has been down for 0 s: timed out"]

    def test_a_hold_stays_until_it_is_released(self, health: Health) -> None:
        health.hold("partition-3", "partition 3 has lost records")
        health.up("kafka")
        assert health.ready() == (False, ["partition 3 has lost records"])
        health.release("another")
        assert not health.ready()[0]
        health.release("partition-3")
        assert health.ready() == (True, [])

    def test_reports_about_a_partition_leave_with_it(self, health: Health) -> None:
        health.hold("partition-3", "partition 3 has lost records", 3)
        health.hold("refused-record-4", "a record of partition 4 is refused", 4)
        health.hold("engine", "the device is sick")
        health.release_partitions({3, 5})
        assert health.ready()[1] == ["the device is sick", "a record of partition 4 is refused"]

    def test_every_reason_is_listed(self, clock: Clock) -> None:
        health = Health(clock)
        health.hold("engine", "the device is sick")
        health.down("store", "full")
        health.down("kafka", "gone")
        assert health.ready()[1] == [
            "the model is loading",
            "kafka has been down for 0 s: gone",
            "store has been down for 0 s: full",
            "the device is sick",
        ]


class TestAlive:
    def test_depends_on_the_last_heartbeat(self, health: Health, clock: Clock) -> None:
        clock.now += HEARTBEAT_BOUND_S - 1
        assert health.alive()
        health.beat()
        clock.now += HEARTBEAT_BOUND_S - 1
        assert health.alive()
        clock.now += 1
        assert not health.alive()
        assert health.ready() == (
            False,
            [f"the Kafka thread has been stuck for {HEARTBEAT_BOUND_S:.0f} s"],
        )

    def test_loading_a_model_may_take_longer_than_a_heartbeat(self, clock: Clock) -> None:
        health = Health(clock)
        clock.now += 100 * HEARTBEAT_BOUND_S
        assert health.alive()
        health.set_started()
        assert health.alive()
        clock.now += HEARTBEAT_BOUND_S
        assert not health.alive()

    def test_waiting_for_an_answer_counts_as_alive(self, health: Health, clock: Clock) -> None:
        with health.waiting("kafka", "a commit"):
            clock.now += PATIENCE_S
            assert health.ready() == (True, [])
            clock.now += HEARTBEAT_BOUND_S
            assert health.alive()
            waited = PATIENCE_S + HEARTBEAT_BOUND_S
            assert health.ready() == (
                False,
                [f"kafka has been down for {waited:.0f} s: a commit has not returned"],
            )
            assert health.dependencies() == {"kafka": False}
        assert health.alive()
        assert health.ready() == (True, [])

    @pytest.mark.parametrize("started", [False, True])
    def test_a_call_that_never_returns_counts_as_dead(self, clock: Clock, started: bool) -> None:
        health = Health(clock)
        if started:
            health.set_started()
        with health.waiting("kafka", "a commit"):
            clock.now += CALL_BOUND_S
            assert not health.alive()


def test_only_known_dependencies_are_listed(health: Health) -> None:
    assert health.dependencies() == {}
    health.up("kafka")
    health.down("store", "full")
    assert health.dependencies() == {"kafka": True, "store": False}
