"""Records that claim a wrong offset cost no request, and no request is served twice.

The brokers ensure that, in a topic with a compression codec of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.fleet.arena import Arena
from tests.fleet.batches import Batch, RefusedError, WireProducer, WireRecord
from tests.fleet.workers import until
from tests.integration.test_worker import image_request
from tests.services import KafkaAddress, MinioAddress
from zimage_stream.events.codec import Codec


def lying(*offsets: int) -> Batch:
    """A batch whose records claim these offsets, relative to its first."""
    return Batch([WireRecord(b"no request", offset=offset) for offset in offsets])


class Upstream:
    """Two producers of handmade batches, writing to one partition."""

    def __init__(self, arena: Arena, producer: WireProducer) -> None:
        self._arena = arena
        self._topic = arena.settings.topics.requests
        self._producer = producer
        self._count = 0

    def ordinary(self, count: int = 1) -> None:
        """Send requests, each in a batch of its own; all of them must be answered."""
        for _ in range(count):
            name = f"request-{self._count}"
            self._count += 1
            value = Codec().encode_request(image_request(request_id=name), "t")
            offset = self._producer.send(self._topic, Batch([WireRecord(value)]))
            self._arena.accepted[0, offset] = name

    def send(self, batch: Batch) -> None:
        """Send a batch that the broker may refuse."""
        with suppress(RefusedError):
            self._producer.send(self._topic, batch)


@pytest.fixture
def arena(make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress) -> Arena:
    return make_arena(kafka, minio, partitions=1, engine={"simulated_ms": 0})


@pytest.mark.parametrize(
    "offsets",
    [
        (-1,),
        (0, 0),
        (5, 6, 7),
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ((1,), (2**31 - 1,), (1, 5), tuple(range(5, 50)))
        ),
    ],
    ids=lambda offsets: " ".join(map(str, offsets[:3])) + " and more" * (len(offsets) > 3),
)
def test_requests_before_and_after_them_are_answered_once(arena: Arena, offsets: tuple[int, ...]) -> None:
    with WireProducer(arena.settings.kafka.bootstrap_servers) as producer:
        upstream = Upstream(arena, producer)
        upstream.ordinary(3)
        upstream.send(lying(*offsets))
        upstream.ordinary(12)
        upstream.send(lying(*offsets))
        arena.fleet.start("worker")
        until(lambda: arena.accepted.keys() <= arena.seen(), 60, "every request is answered")
        upstream.ordinary(12)
    until(lambda: arena.accepted.keys() <= arena.seen(), 60, "every request is answered")
    report = arena.report()
    assert report.results.keys() == arena.accepted.keys()
    assert report.duplicates == []
    assert not report.dead.keys() & arena.accepted.keys()
