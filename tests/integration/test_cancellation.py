"""Cancellations on real services: whatever a request had reached, it gets one terminal event."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.fleet.arena import Arena
from tests.fleet.workers import WorkerProcess
from tests.integration.test_health import samples
from tests.services import KafkaAddress, MinioAddress, RegistryAddress
from zimage_stream import PromptClient, PromptRequest
from zimage_stream.engines.base import ImageSpec
from zimage_stream.engines.simulated import service_seconds
from zimage_stream.events.image_result import Code, Status

STEP_S = 1.0
SIDE = 64
WINDOW = 24


def image_request(prompt: str = "a picture", **fields: object) -> PromptRequest:
    return PromptRequest(prompt=prompt, width=SIDE, height=SIDE, **fields)  # type: ignore[arg-type]


def cancelled(worker: WorkerProcess) -> dict[str, float]:
    """How many requests the worker ended because they were cancelled, by what they had reached."""
    found = samples(worker).items()
    return {stage: value for (name, stage), value in found if name == "zimage_cancelled_total"}


@pytest.fixture
def slow(make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress) -> Arena:
    """A worker's device takes eight steps of a second for each image, one image at a time."""
    share = service_seconds([ImageSpec("", SIDE, SIDE, 8, 0.0, 0)], 1.0)
    reference_ms = 8 * STEP_S * 1e3 / share
    return make_arena(
        kafka, minio, engine={"simulated_ms": reference_ms, "max_batch": 1}, worker={"window": WINDOW}
    )


@pytest.fixture
def client(slow: Arena) -> Iterator[PromptClient]:
    with PromptClient(slow.settings) as client:
        yield client


def test_what_waits_and_what_is_being_generated_can_be_cancelled(slow: Arena, client: PromptClient) -> None:
    worker = slow.fleet.start("worker").wait_ready()
    first = client.submit(image_request())
    worker.wait_begun()
    second, third = (client.submit(image_request()) for _ in range(2))

    assert client.cancel(third, reason="another word")
    ended = client.wait(third, timeout=120)
    assert (ended.status, ended.attempts, ended.image) == (Status.CANCELLED, 0, None)
    assert ended.error is not None
    assert (ended.error.code, ended.error.message) == (Code.CANCELLED, "it was cancelled: another word")
    assert client.cancel(first)
    ended = client.wait(first, timeout=120)
    assert (ended.status, ended.attempts, ended.image) == (Status.CANCELLED, 0, None)
    assert client.wait(second, timeout=120).status is Status.SUCCEEDED
    counted = cancelled(worker)
    assert (counted["generating"], sum(counted.values())) == (1, 2)


def test_a_request_far_back_in_the_log_ends_within_seconds(slow: Arena, client: PromptClient) -> None:
    requests = [image_request(f"picture {number}") for number in range(3_000)]
    slow.send(requests[:-1])
    worker = slow.fleet.start("worker").wait_ready()
    worker.wait_begun()
    last = client.submit(requests[-1])
    assert client.cancel(last)
    assert client.wait(last, timeout=10).status is Status.CANCELLED
    assert cancelled(worker) == {"fetched": 1}


def test_a_cancellation_written_with_a_registry_is_read_once_its_schema_is_known(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress, registry: RegistryAddress
) -> None:
    settings = {"url": registry.url, "auto_register": True}
    arena = make_arena(kafka, minio, engine={"simulated_ms": 0}, registry=settings)
    with PromptClient(arena.settings) as client:
        cancelled, other = (client.submit(image_request()) for _ in range(2))
        assert client.cancel(cancelled)
        worker = arena.fleet.start("worker").wait_ready()
        assert client.wait(other, timeout=120).status is Status.SUCCEEDED
        assert client.wait(cancelled, timeout=120).status is Status.CANCELLED
    assert arena.fleet.generated() == {other: 1}
    assert worker.ready() == (True, [])
