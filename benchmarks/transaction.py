"""How long one publication takes: a result and a checkpoint in one transaction, on a real broker.

Measured twice in one run, with this project's producer settings and with librdkafka's defaults, so that the
ratio is meaningful on any machine.

    python -m tests.services run --no-registry -- python -m benchmarks.transaction
"""

from __future__ import annotations

import time
import uuid
from statistics import median
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from benchmarks.report import Report, parser, publish
from benchmarks.workers import percentile
from zimage_stream.checkpoint import Checkpoint
from zimage_stream.kafka.clients import common_config, transactional_config, worker_consumer_config
from zimage_stream.settings import KafkaSettings, load_settings

RESULT_BYTES = 600


def main() -> None:
    options = parser(__doc__, "few transactions")
    options.add_argument("--count", type=int, default=300, help="transactions of each kind")
    arguments = options.parse_args()
    count = 30 if arguments.quick else arguments.count

    kafka = load_settings().kafka
    topic = f"benchmark-{uuid.uuid4().hex[:8]}"
    admin = AdminClient(common_config(kafka))
    admin.create_topics([NewTopic(topic, 4, -1)])[topic].result(30)
    try:
        ours = measure(kafka, topic, count, transactional_config(kafka, f"{topic}-ours"))
        plain = {"transactional.id": f"{topic}-defaults"}
        defaults = measure(kafka, topic, max(30, count // 10), {**common_config(kafka), **plain})
    finally:
        admin.delete_topics([topic])[topic].result(30)

    runs = {"ours": ours, "librdkafka defaults": defaults}
    rows = [(name, len(times), *summary(times)) for name, times in runs.items()]
    findings = [f"The median is {median(defaults) / median(ours):.1f} times shorter than with the defaults."]
    publish(Report(("settings", "count", "median, ms", "p95, ms", "longest, ms"), rows, findings), arguments)


def measure(kafka: KafkaSettings, topic: str, count: int, config: dict[str, Any]) -> list[float]:
    """Milliseconds of each transaction: begin, one record, one offset with its checkpoint, commit."""
    consumer = Consumer(worker_consumer_config(kafka, f"{topic}-{config['transactional.id']}", "benchmark"))
    producer = Producer(config)
    producer.init_transactions(30)
    consumer.subscribe([topic])
    while not consumer.assignment():
        consumer.poll(0.1)
    times = []
    for offset in range(count + 10):
        committed = TopicPartition(topic, 0, offset, Checkpoint(offset, owner=1).encode())
        started = time.perf_counter()
        producer.begin_transaction()
        producer.produce(topic, partition=1, key=b"key", value=bytes(RESULT_BYTES))
        producer.send_offsets_to_transaction([committed], consumer.consumer_group_metadata(), 30)
        producer.commit_transaction(30)
        times.append((time.perf_counter() - started) * 1e3)
        consumer.poll(0)
    consumer.close()
    return times[10:]


def summary(times: list[float]) -> tuple[float, float, float]:
    """Median, p95 and maximum."""
    return median(times), percentile(times, 0.95), max(times)


if __name__ == "__main__":
    main()
