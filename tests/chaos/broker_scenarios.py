"""Faults of a Kafka cluster. Each scenario runs on three brokers of its own, and most lose one or two."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tests.chaos.scenarios import Scenario
from tests.chaos.stage import Stage
from tests.fleet.workers import until
from tests.services.errors import ServiceError
from tests.services.native.cluster import BROKERS, Broker
from tests.services.native.process import launch_all
from zimage_stream.kafka.topics import DEAD_LETTER_PARTITIONS, RESULT_PARTITIONS

RECOVERY_S = 30.0
"""Seconds after the last broker's return within which everything accepted before it must be answered."""
MISSED_S = 6.0
"""Twice the brokers' session timeout: a dead or frozen broker has lost all its leaderships."""
SERVED_S = 90.0
FORK = range(4)
"""Partitions whose log is cut by an unclean election: one broker has records that the other never got."""
SINGLE = [[number] for number in BROKERS] * 4
"""The node that holds the only copy of each partition."""
STOPPED = re.compile(r"partition (\d+) is stopped")
"""Report in ``/readyz`` about a partition whose log went back."""


@dataclass(frozen=True)
class BrokerScenario(Scenario):
    """A scenario of broker faults.

    Attributes:
        copies: for each partition of the requests topic, the brokers that hold it; if not given, all three
            hold every partition.
        config: settings of the requests topic, where ``copies`` are given.
    """

    copies: Sequence[Sequence[int]] = ()
    config: Mapping[str, str] = field(default_factory=dict)


def leader_killed(stage: Stage, scale: float) -> None:
    """The leader of a partition of requests, results or dead letters."""
    topics = stage.arena.settings.topics
    partitions = {
        topics.requests: stage.partitions,
        topics.results: RESULT_PARTITIONS,
        topics.dead_letters: DEAD_LETTER_PARTITIONS,
    }

    def leader() -> Broker | None:
        topic = stage.rng.choice(list(partitions))
        return stage.cluster.leader(topic, stage.rng.randrange(partitions[topic]))

    stage.start_workers()
    for _ in range(round(2 * scale)):
        stage.pause(1, 3)
        _kill(stage, leader)


def transaction_coordinator_killed(stage: Stage, scale: float) -> None:
    stage.start_workers()
    for _ in range(round(scale)):
        stage.pause(1, 3)
        _kill(stage, lambda: _transaction_coordinator(stage))


def group_coordinator_killed(stage: Stage, scale: float) -> None:
    stage.start_workers()
    for _ in range(round(scale)):
        stage.pause(1, 3)
        _kill(stage, lambda: _group_coordinator(stage))


def two_of_three_brokers_down(stage: Stage, scale: float) -> None:
    """Two of three brokers are down; the one that is left accepts no record that it would hold alone."""
    stage.start_workers()
    stage.pause(2, 4)
    down = stage.rng.sample(stage.cluster.brokers, 2)
    for broker in down:
        broker.kill()
    stage.pause(8 if scale < 2 else 30)
    launch_all(down)
    stage.fault()
    stage.cluster.wait_in_sync()
    stage.pause(4)


def broker_frozen(stage: Stage, scale: float) -> None:
    """A broker is frozen until others lead its partitions; then it continues as if nothing had happened."""
    stage.start_workers()
    for _ in range(round(scale)):
        stage.pause(1, 3)
        _freeze(stage, lambda: stage.rng.choice(stage.cluster.brokers), MISSED_S if scale < 2 else 20)


def all_brokers_frozen(stage: Stage, scale: float) -> None:
    """All brokers are frozen until the controller has fenced them. For a moment after they continue, no
    partition has a leader, among them those in transactions that are being committed."""
    stage.start_workers()
    for _ in range(round(scale)):
        stage.pause(1, 3)
        for broker in stage.cluster.brokers:
            broker.pause()
        stage.pause(MISSED_S)
        for broker in stage.cluster.brokers:
            broker.resume()
        stage.fault()
        stage.cluster.wait_in_sync()
        stage.pause(2)


def coordinators_lost(stage: Stage, scale: float) -> None:
    """One broker is killed and one frozen: the short form of the three scenarios above."""
    stage.start_workers()
    for _ in range(round(scale)):
        stage.pause(1)
        _kill(stage, lambda: _transaction_coordinator(stage))
        _freeze(stage, lambda: _group_coordinator(stage), MISSED_S)


def brokers_restarted_in_turn(stage: Stage, scale: float) -> None:
    """Brokers restart one after the other, as for an upgrade of Kafka."""
    stage.start_workers()
    for broker in stage.rng.sample(stage.cluster.brokers * round(scale), 3 * round(scale)):
        stage.pause(1, 2)
        broker.stop()
        stage.pause(0.5, 1)
        broker.start()
        stage.fault()
        stage.cluster.wait_in_sync()
    stage.pause(4)


def one_broker_down_replication_1(stage: Stage, scale: float) -> None:
    """Starting workers find partitions without a leader and without a commit. The others are served
    meanwhile."""
    requests = stage.arena.settings.topics.requests
    down = stage.cluster.broker(BROKERS[-1])
    down.kill()
    leaderless = [n for n, copies in enumerate(SINGLE) if down.number in copies]
    others = [n for n, copies in enumerate(SINGLE) if down.number not in copies]
    _until(lambda: not any(stage.cluster.leader(requests, n) for n in leaderless), "they have no leader")
    stage.start_workers(wait=False)
    stage.pause(3)
    stage.wait_served(others, SERVED_S)
    stage.pause(2 * scale)
    down.start()
    stage.fault()
    stage.cluster.wait_in_sync()
    stage.pause(4)


def unclean_election(stage: Stage, scale: float) -> None:
    """Kafka itself loses requests that it had accepted: the only broker that has them dies, and one that
    never had them becomes leader. New requests get the offsets of the lost ones, which the workers have
    answered.
    Workers must not confuse the two: they stop the partition and report it, and so does its next owner, even
    when the log has grown beyond its former end."""
    requests = stage.arena.settings.topics.requests
    leading, lagging = (stage.cluster.broker(number) for number in BROKERS[:2])
    stage.start_workers()
    stage.pause(2)
    lagging.kill()
    _until(
        lambda: all(stage.cluster.in_sync(requests, n) == {leading.number} for n in FORK), "it lags behind"
    )
    stage.pause(3 * scale)
    with stage.silence():
        ends = [stage.cluster.end(requests, n) for n in FORK]
        leading.kill()
        lagging.start()
        _until(lambda: all(stage.cluster.leader(requests, n) is lagging for n in FORK), "it leads")
        leading.start()
        stage.cluster.wait_in_sync()
        stage.fault()
    _stopped(stage)
    _until(lambda: all(stage.cluster.end(requests, n) > ends[n] for n in FORK), "the logs have grown again")
    for worker in stage.crew:
        stage.rest(worker)
        worker.kill()
    for worker in stage.crew:
        stage.wake(worker)
    stage.log_was_cut(_stopped(stage))
    stage.pause(4)


def _kill(stage: Stage, choose: Callable[[], Broker | None]) -> None:
    """Kill a broker, and restart it when the others have taken over."""
    broker = _found(choose)
    broker.kill()
    stage.pause(MISSED_S)
    _returned(stage, broker.start)


def _freeze(stage: Stage, choose: Callable[[], Broker | None], time_s: float) -> None:
    broker = _found(choose)
    broker.pause()
    stage.pause(time_s)
    _returned(stage, broker.resume)


def _returned(stage: Stage, come_back: Callable[[], None]) -> None:
    """Wait until all brokers are fully in sync after a restart, before the next one goes down."""
    come_back()
    stage.fault()
    stage.cluster.wait_in_sync()
    stage.pause(2)


def _group_coordinator(stage: Stage) -> Broker | None:
    return stage.cluster.group_coordinator(stage.arena.settings.worker.group_id)


def _transaction_coordinator(stage: Stage) -> Broker | None:
    """The coordinator of some worker's transactions."""
    ids = sorted(stage.cluster.transactional_ids(stage.began))
    return stage.cluster.transaction_coordinator(stage.rng.choice(ids)) if ids else None


def _stopped(stage: Stage) -> Collection[int]:
    """Partitions that workers report as stopped: all those whose log was cut, or as many as were reported
    when the wait times out."""
    deadline = time.monotonic() + RECOVERY_S
    found: set[int] = set()
    while not found.issuperset(FORK) and time.monotonic() < deadline:
        found |= {int(number) for reason in stage.told() for number in STOPPED.findall(reason)}
        stage.pause(0.2)
    return found


def _found(choose: Callable[[], Broker | None]) -> Broker:
    """The broker chosen to fail, once it is known."""
    found: list[Broker] = []

    def chosen() -> bool:
        found[:] = filter(None, [choose()])
        return bool(found)

    _until(chosen, "the broker is known")
    return found[0]


def _until(holds: Callable[[], bool], what: str) -> None:
    """Wait for a condition on a cluster that may fail to answer meanwhile."""

    def held() -> bool:
        with suppress(ServiceError):
            return holds()
        return False

    until(held, 60, what)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        BrokerScenario("leader killed", leader_killed, short=False),
        BrokerScenario("transaction coordinator killed", transaction_coordinator_killed, short=False),
        BrokerScenario("group coordinator killed", group_coordinator_killed, short=False),
        BrokerScenario("two of three brokers down", two_of_three_brokers_down, short=False),
        BrokerScenario("broker frozen", broker_frozen, short=False),
        BrokerScenario("all brokers frozen", all_brokers_frozen, short=False),
        BrokerScenario("coordinators lost", coordinators_lost, short=False),
        BrokerScenario("brokers restarted in turn", brokers_restarted_in_turn, short=False),
        BrokerScenario(
            "one broker down, replication 1",
            one_broker_down_replication_1,
            short=False,
            copies=SINGLE,
            config={"min.insync.replicas": "1"},
        ),
        BrokerScenario(
            "unclean election",
            unclean_election,
            short=False,
            copies=[[1, 2] for _ in FORK] + [[3, 2]] * 8,
            config={"unclean.leader.election.enable": "true", "min.insync.replicas": "1"},
        ),
    )
}
