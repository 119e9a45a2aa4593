"""What a worker finds when it takes over a partition, on real services."""

from __future__ import annotations

import time
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from tests.fleet.arena import Arena, client_config
from tests.fleet.workers import until
from tests.integration.test_health import samples
from tests.services.addresses import KafkaAddress, MinioAddress
from tests.services.native.kafka import Kafka
from zimage_consumers.image_worker.group.roster import draw_nonce
from zimage_consumers.image_worker.window.ledger import RECORDS_PER_TURN, UNMARKED_DEATHS_LIMIT
from zimage_stream import PromptRequest
from zimage_stream.checkpoint import Checkpoint
from zimage_stream.events.codec import Codec
from zimage_stream.kafka.clients import common_config, create_admin
from zimage_stream.settings import TopicSettings

SLOT = "worker"


def image_request(prompt: str = "a picture") -> PromptRequest:
    return PromptRequest(prompt=prompt, width=64, height=64)


def commit(arena: Arena, checkpoint: Checkpoint) -> None:
    """Leave a checkpoint in partition 0, as a former worker would."""
    settings = arena.settings
    tool = Consumer(client_config(settings.kafka) | {"group.id": settings.worker.group_id})
    place = TopicPartition(settings.topics.requests, 0, checkpoint.base, checkpoint.encode())
    tool.commit(offsets=[place], asynchronous=False)
    tool.close()


def committed(arena: Arena) -> int:
    settings = arena.settings
    tool = Consumer(client_config(settings.kafka) | {"group.id": settings.worker.group_id})
    try:
        (found,) = tool.committed([TopicPartition(settings.topics.requests, 0)], timeout=120)
        return int(found.offset)
    finally:
        tool.close()


def test_records_decoded_one_at_a_time_do_not_wait_for_each_others_images(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress
) -> None:
    arena = make_arena(kafka, minio, partitions=1)
    commit(arena, Checkpoint(0, owner=draw_nonce(SLOT), deaths=UNMARKED_DEATHS_LIMIT - 1))
    count = 40
    assert count < RECORDS_PER_TURN
    arena.send([image_request() for _ in range(count)])
    worker = arena.fleet.start(SLOT, ZIMAGE_ENGINE__SIMULATED_MS="0").wait_ready()
    arena.assert_exactly_once(arena.wait_answered(60))
    values = samples(worker)
    # Each was decoded under a mark of its own, and then they ran together.
    assert values["zimage_marks_total", ""] >= count
    assert values["zimage_batch_size_count", ""] < count / 2


def test_a_log_emptied_behind_a_transaction_marker_is_still_served(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress
) -> None:
    arena = make_arena(kafka, minio, partitions=1)
    topic = arena.settings.topics.requests
    upstream = Producer(client_config(arena.settings.kafka) | {"transactional.id": f"{topic}-upstream"})
    upstream.init_transactions(120)
    upstream.begin_transaction()
    upstream.produce(topic, Codec().encode_request(image_request(), topic), partition=0)
    upstream.commit_transaction(120)
    arena.accepted[0, 0] = "the first"
    worker = arena.fleet.start(SLOT, ZIMAGE_ENGINE__SIMULATED_MS="0").wait_ready()
    arena.wait_answered(30)
    until(lambda: committed(arena) == 2, 30, "the marker is committed as passed")
    worker.kill()
    admin = AdminClient({**client_config(arena.settings.kafka)})
    for deleted in admin.delete_records([TopicPartition(topic, 0, 2)]).values():
        deleted.result(120)

    worker.start().wait_ready()
    arena.send([image_request("after the log was emptied")])
    report = arena.wait_answered(30)
    arena.assert_exactly_once(report)


def test_the_end_of_a_log_is_told_after_its_leader_has_begun_a_new_epoch(
    own_kafka: Kafka, make_topics: Callable[..., TopicSettings]
) -> None:
    place = TopicPartition(make_topics(own_kafka).requests, 0)

    def refusal(admin: AdminClient) -> int | None:
        """Why the client is not told where the log ends; ``None`` if it is."""
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        try:
            admin.list_offsets({place: latest}, request_timeout=30)[place].result()
        except KafkaException as error:
            return int(error.args[0].code())
        return None

    plain, ours = AdminClient(common_config(own_kafka.settings)), create_admin(own_kafka.settings)

    def begin_an_epoch() -> bool:
        # A broker that misses its heartbeats is no leader any more, and is elected again once it returns.
        own_kafka.pause()
        time.sleep(4)
        own_kafka.resume()
        return refusal(plain) == KafkaError.FENCED_LEADER_EPOCH

    until(lambda: refusal(plain) is refusal(ours) is None, 30, "both know the leader")
    until(begin_an_epoch, 60, "the leader's epoch is a new one")
    until(lambda: refusal(ours) is None, 30, "our client has learnt of it")
