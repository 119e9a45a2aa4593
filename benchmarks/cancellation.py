"""How soon a cancelled request ends, and what cancellations cost a worker that starts.

One worker process, simulated engine, real Kafka, a directory as the store.

- *behind a backlog*: seconds from ``PromptClient.cancel`` to the result of the last of many waiting requests.
- *on the device*: the same for a request that is being generated, eight steps of a second, in steps.
- *at the start*: a worker starts with 1,000 waiting requests, all of them cancelled, once with their 1,000
  cancellations alone, and once among many others that name requests which have ended, or none. Seconds from
  its start until all have ended, and the most memory it ever had.

    python -m tests.services run --no-registry -- python -m benchmarks.cancellation
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from confluent_kafka import Producer

from benchmarks.report import Cell, Report, parser, publish
from benchmarks.workers import Workers, answers, fresh_settings, peak_resident_bytes
from zimage_stream import ImageResult, PromptClient, PromptRequest, Status
from zimage_stream.engines.base import ImageSpec
from zimage_stream.engines.simulated import service_seconds
from zimage_stream.events.cancellation import Cancellation
from zimage_stream.events.codec import Codec
from zimage_stream.events.image_result import Source
from zimage_stream.kafka.clients import producer_config
from zimage_stream.settings import Settings

MEMORY = Path("/dev/shm")
SIDE = 64
STEPS = 8
SOON_S = 30.0


def main() -> None:
    options = parser(__doc__, "small backlogs")
    arguments = options.parse_args()
    backlog, times, waiting, others = (500, 2, 50, 500) if arguments.quick else (100_000, 10, 1_000, 999_000)
    far = behind_a_backlog(backlog, times)
    near = on_the_device(times)
    alone_s, alone_bytes = at_the_start(waiting, 0)
    among_s, among_bytes = at_the_start(waiting, others)
    more = (among_bytes - alone_bytes) / 2**20
    rows: list[list[Cell]] = [
        [f"the last of {backlog:,} waiting requests, s", median(far), max(far)],
        ["a request on the device, steps of 1 s", median(near), max(near)],
        [f"a start with {waiting:,} cancellations, s", alone_s, alone_s],
        [f"a start with {waiting + others:,} cancellations, s", among_s, among_s],
    ]
    findings = [
        f"The last of {backlog:,} waiting requests is CANCELLED after {median(far):.2f} s (median), "
        f"{max(far):.2f} s at most; one on the device after {median(near):.1f} steps, {max(near):.1f} at "
        f"most.",
        f"Among {others:,} other cancellations, a worker that starts has ended {waiting:,} requests after "
        f"{among_s:.1f} s instead of {alone_s:.1f} s, and needs {more:+.1f} MiB of memory.",
    ]
    publish(Report(("cancelled", "median", "most"), rows, findings), arguments)


@contextmanager
def deployment(simulated_ms: float) -> Iterator[Settings]:
    """Settings with a simulated engine and a directory as the store."""
    with (
        tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder,
        fresh_settings(
            engine={"kind": "simulated", "simulated_ms": simulated_ms, "max_batch": 1},
            store={"kind": "directory", "path": folder},
        ) as settings,
    ):
        yield settings


def reference_ms(image_s: float) -> float:
    """The engine's setting for images that take this long."""
    return image_s * 1e3 / service_seconds([ImageSpec("", SIDE, SIDE, STEPS, 0.0, 0)], 1.0)


def requests(count: int) -> Iterator[PromptRequest]:
    """Small requests."""
    return (PromptRequest(prompt=f"picture {number}", width=SIDE, height=SIDE) for number in range(count))


def cancel(client: PromptClient, request_id: str) -> float:
    """Seconds from a cancellation until its result is read."""
    began = time.monotonic()
    assert client.cancel(request_id)
    assert client.wait(request_id, SOON_S).status is Status.CANCELLED
    return time.monotonic() - began


def behind_a_backlog(backlog: int, times: int) -> list[float]:
    """Seconds until the latest request has ended, while the worker is busy with the first."""
    with deployment(reference_ms(3_600.0)) as settings, PromptClient(settings) as client:
        client.submit_many(requests(backlog))
        with Workers(settings, "--no-supervise") as worker:
            worker.wait_for("took over partitions", 1)
            return [cancel(client, client.submit(next(requests(1)))) for _ in range(times)]


def on_the_device(times: int) -> list[float]:
    """Seconds, which are steps, until a request has ended that is being generated."""
    took = []
    with (
        deployment(reference_ms(STEPS * 1.0)) as settings,
        PromptClient(settings) as client,
        Workers(settings, "--no-supervise") as worker,
    ):
        worker.wait_for("took over partitions", 1)
        for _ in range(times):
            request_id = client.submit(next(requests(1)))
            # Long enough to have begun, and far from ended.
            time.sleep(2.5)
            took.append(cancel(client, request_id))
    return took


def at_the_start(waiting: int, others: int) -> tuple[float, int]:
    """Seconds until a worker that starts has ended all requests, and its peak of memory in bytes."""
    with deployment(0.0) as settings, answers(settings) as take, PromptClient(settings) as client:
        client.submit_many(requests(waiting))
        with Workers(settings, "--no-supervise"):
            ended = take(waiting)
        places = [client.submit_nowait(request).result(SOON_S) for request in requests(waiting)]
        write(settings, places, ended, others)
        began = time.monotonic()
        with Workers(settings, "--no-supervise") as worker:
            results = take(waiting)
            took = time.monotonic() - began
            missed = sum(result.status is not Status.CANCELLED for result in results)
            assert not missed, f"{missed:,} of {waiting:,} were served"
            return took, peak_resident_bytes(worker.pid)


def write(settings: Settings, places: Sequence[Source], ended: Sequence[ImageResult], others: int) -> None:
    """Write the cancellations of these places, spread among others of ended requests and of none."""
    producer = Producer({**producer_config(settings.kafka), "queue.buffering.max.messages": 2_000_000})
    topic, codec = settings.topics.cancellations, Codec()
    each = others // len(places)
    for number, place in enumerate(places):
        for other in range(each):
            source = ended[other % len(ended)].source
            if other % 2:
                source = Source(
                    topic=place.topic, partition=place.partition, offset=10**6 + number * each + other
                )
            send(producer, topic, codec, source)
        send(producer, topic, codec, place)
    assert producer.flush(300) == 0


def send(producer: Producer, topic: str, codec: Codec, source: Source) -> None:
    """Send one cancellation."""
    cancellation = Cancellation(request_id="any", source=source, requested_at=datetime.now(UTC))
    producer.produce(topic, codec.encode_cancellation(cancellation, topic), partition=source.partition)
    producer.poll(0)


if __name__ == "__main__":
    main()
