"""What brokers answer while leaders change, and how a take-over handles it.

The answers were observed on three brokers while some of them died; no broker gives them on request.
"""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import OFFSET_INVALID, ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from zimage_consumers.image_worker.group import takeover
from zimage_consumers.image_worker.group.takeover import ArrivingPartitions, StartingPoint
from zimage_stream.checkpoint import Checkpoint
from zimage_stream.telemetry.health import Health

TOPIC, GROUP, NUMBER = "requests", "workers", 3


class Brokers:
    """Answers an admin client's queries at once.

    Args:
        committed: the group's offset, if it has one.
        bounds: successive answers about where the log begins or ends.
    """

    def __init__(self, committed: int, bounds: list[int]) -> None:
        self._committed = committed
        self._bounds = bounds

    def list_consumer_group_offsets(
        self, asked: list[ConsumerGroupTopicPartitions], **_: Any
    ) -> dict[str, Future[Any]]:
        place = TopicPartition(TOPIC, NUMBER, self._committed)
        return {asked[0].group_id: _answer(SimpleNamespace(topic_partitions=[place]))}

    def list_offsets(self, asked: dict[TopicPartition, Any], **_: Any) -> dict[TopicPartition, Future[Any]]:
        return {place: _answer(SimpleNamespace(offset=self._bounds.pop(0))) for place in asked}


def _answer(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


@pytest.mark.parametrize("committed", [93, OFFSET_INVALID])
def test_a_leader_that_does_not_return_an_end_offset_is_queried_again(
    committed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "ASK_AGAIN_S", 0.0)
    brokers = Brokers(committed, [OFFSET_INVALID, OFFSET_INVALID, 120])
    arriving = ArrivingPartitions(cast(AdminClient, brokers), GROUP, TOPIC, owner=1, health=Health())
    arriving.add([NUMBER])
    begun: dict[int, StartingPoint] = {}
    for _ in range(20):
        begun |= arriving.ready()
    begins_at = 120 if committed == OFFSET_INVALID else committed
    assert begun[NUMBER].gone_back is None
    assert begun[NUMBER].checkpoint == Checkpoint(begins_at, owner=1)
