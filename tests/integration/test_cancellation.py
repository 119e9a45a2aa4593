"""A worker on real services: a cancelled request gets one terminal event, whatever it had reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.fleet.arena import Arena
from tests.integration.test_health import samples
from tests.services import KafkaAddress, MinioAddress
from zimage_stream import PromptClient, PromptRequest
from zimage_stream.events.image_result import Code, Status

STEP_S = 1.0


def image_request(prompt: str = "a picture", **fields: object) -> PromptRequest:
    return PromptRequest(prompt=prompt, width=64, height=64, **fields)  # type: ignore[arg-type]


@pytest.fixture
def slow(make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress) -> Arena:
    """Eight steps of a second for each image, one image at a time."""
    return make_arena(kafka, minio, engine={"simulated_ms": 8 * STEP_S * 1e3, "max_batch": 1})


@pytest.fixture
def client(slow: Arena) -> Iterator[PromptClient]:
    with PromptClient(slow.settings) as client:
        yield client


def test_what_waits_and_what_is_being_generated_can_be_cancelled(slow: Arena, client: PromptClient) -> None:
    worker = slow.fleet.start("worker").wait_ready()
    first, second, third = (client.submit(image_request()) for _ in range(3))
    worker.wait_begun()

    assert client.cancel(third, reason="another word")
    ended = client.wait(third, timeout=120)
    assert (ended.status, ended.attempts, ended.image) == (Status.CANCELLED, 0, None)
    assert ended.error is not None
    assert (ended.error.code, ended.error.message) == (Code.CANCELLED, "it was cancelled: another word")
    assert client.cancel(first)
    ended = client.wait(first, timeout=120)
    assert (ended.status, ended.attempts, ended.image) == (Status.CANCELLED, 0, None)
    assert client.wait(second, timeout=120).status is Status.SUCCEEDED
    counted = {stage: value for (name, stage), value in samples(worker).items() if name == "zimage_cancelled_total"}
    assert counted == {"waiting": 1.0, "generating": 1.0}
