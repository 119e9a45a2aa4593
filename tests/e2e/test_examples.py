"""Every example as its README runs it, with and without a registry, answered by a real worker."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.fleet.arena import Arena
from tests.fleet.workers import until
from tests.services import KafkaAddress, MinioAddress, RegistryAddress
from zimage_stream import PromptRequest
from zimage_stream.engines.tiny.captions import COMBINATIONS, caption, variants
from zimage_stream.events.schemas import IMAGE_RESULT, PROMPT_REQUEST, Schema, published
from zimage_stream.kafka.topics import RESULT_PARTITIONS
from zimage_stream.settings import environment_of

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCHEMA = ROOT / "schemas" / f"{PROMPT_REQUEST}.v1.avsc"
PROMPTS = ("a red heart on a white background", "白色背景上的红色圆形")


@pytest.fixture(params=["with a registry", "without"])
def registry_url(request: pytest.FixtureRequest) -> str | None:
    if request.param == "without":
        return None
    address: RegistryAddress = request.getfixturevalue("registry")
    return address.url


@pytest.fixture
def served(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress, registry_url: str | None
) -> Arena:
    """A worker that answers at once, in the framing given by the parameter."""
    arena = make_arena(kafka, minio, registry={"url": registry_url, "auto_register": True})
    arena.fleet.start("worker", ZIMAGE_ENGINE__SIMULATED_MS="0").wait_ready()
    return arena


def run(name: str, arena: Arena, *words: str) -> list[str]:
    """Lines of the program's stdout; it must not need our package on its path."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *words],
        env=os.environ | {"ZIMAGE_KAFKA__BOOTSTRAP_SERVERS": arena.settings.kafka.bootstrap_servers},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def subscribe(arena: Arena, registry_url: str | None) -> list[dict[str, Any]]:
    """Two results, as read by the bare subscriber."""
    topic = arena.settings.topics.results
    words = ("--topic", topic, "--group", topic, "--count", "2")
    lines = run("bare_subscriber.py", arena, *words, *with_registry(registry_url))
    return [json.loads(line) for line in lines]


def with_registry(url: str | None, *more: str) -> tuple[str, ...]:
    return ("--registry", url, *more) if url else ()


def test_the_bare_producer_and_subscriber_need_none_of_our_packages(
    served: Arena, registry_url: str | None
) -> None:
    topics = served.settings.topics
    ids = run(
        "bare_producer.py",
        served,
        *("--topic", topics.requests, "--width", "64", "--height", "64", "--tenant", "shop"),
        *with_registry(registry_url, "--register"),
        *PROMPTS,
    )
    assert len(set(ids)) == 2
    results = subscribe(served, registry_url)
    assert {result["request_id"] for result in results} == set(ids)
    assert {(result["status"], result["tenant"]) for result in results} == {("SUCCEEDED", "shop")}
    # The group has committed them.
    group = {"group.id": topics.results, "bootstrap.servers": served.settings.kafka.bootstrap_servers}
    consumer = Consumer(group)
    partitions = [TopicPartition(topics.results, number) for number in range(RESULT_PARTITIONS)]
    assert sum(at.offset > 0 for at in consumer.committed(partitions, timeout=120)) in (1, 2)
    consumer.close()


def test_a_worker_generates_with_a_custom_engine(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress
) -> None:
    arena = make_arena(kafka, minio)
    environment = os.environ | environment_of(arena.settings) | {"ZIMAGE_TELEMETRY__PORT": "0"}
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / "own_engine.py"), "--slot", "own"], env=environment
    ) as worker:
        try:
            request = PromptRequest(prompt="a lighthouse", width=256, height=128, seed=300)
            arena.send([request])
            result = arena.wait_answered(120).by_request()[request.request_id]
            worker.terminate()
            assert worker.wait(60) == 0
        finally:
            worker.kill()
    assert (result["status"], result["model"], result["worker"]) == ("SUCCEEDED", "drawings", "own")


@pytest.mark.parametrize("name", ["bare_producer.py", "bare_subscriber.py"])
def test_examples_called_bare_import_none_of_our_packages(name: str) -> None:
    assert "zimage_stream" not in (EXAMPLES / name).read_text(encoding="utf-8").replace("import nothing", "")


def test_the_java_producer_is_answered(
    served: Arena, registry_url: str | None, java_producer: Sequence[str]
) -> None:
    topics = served.settings.topics
    servers = served.settings.kafka.bootstrap_servers
    words = (servers, topics.requests, str(SCHEMA), registry_url or "-", "64", *PROMPTS)
    done = subprocess.run(
        [*java_producer, *words], capture_output=True, text=True, timeout=120, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    ids = set(done.stdout.split())
    results = subscribe(served, registry_url)
    assert {result["request_id"] for result in results} == ids
    assert {result["status"] for result in results} == {"SUCCEEDED"}


@pytest.mark.parametrize(
    "schema",
    [*published()[PROMPT_REQUEST], *published()[IMAGE_RESULT]],
    ids=lambda schema: f"{schema.name}.v{schema.version}",
)
def test_java_sees_the_same_fingerprint(schema: Schema, java_producer: Sequence[str]) -> None:
    file = ROOT / "schemas" / f"{schema.name}.v{schema.version}.avsc"
    done = subprocess.run(
        [*java_producer, "fingerprint", str(file)], capture_output=True, text=True, timeout=120, check=True
    )
    assert bytes.fromhex(done.stdout.strip()) == schema.fingerprint


@pytest.fixture
def service(arena: Arena) -> Iterator[str]:
    """The example service's address, with a worker behind it."""
    arena.fleet.start("worker", ZIMAGE_ENGINE__SIMULATED_MS="0").wait_ready()
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "service.py"), "--port", "0"],
        env=environment_of(arena.settings),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    yield f"http://{process.stdout.readline().split()[-1]}/pictures"
    process.terminate()
    process.communicate(timeout=120)


def call(url: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_service_answers(service: str) -> None:
    status, asked = call(service, {"prompt": PROMPTS[0], "width": 64, "height": 64})
    assert status == 202
    address = f"{service}/{asked['request_id']}"
    until(lambda: call(address)[0] == 200, 30, "the image is there")
    status, found = call(address)
    assert found["status"] == "SUCCEEDED"
    assert found["image"].startswith("s3://")
    status, refused = call(service, {"prompt": PROMPTS[0], "width": 65})
    assert (status, refused["field"]) == (400, "width")
    assert call(service, {"prompt": "x", "size": 1})[0] == 400
    assert call(service, ["x"])[0] == 400
    assert call(f"{service}/nobody")[0] == 404


def test_the_tiny_checkpoint_knows_every_product() -> None:
    known = {
        caption(shape, colour, background, language, number)
        for shape, colour, background in COMBINATIONS
        for language in ("en", "zh")
        for number in range(variants(shape, language))
    }
    with (EXAMPLES / "products.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["sku"] for row in rows}) == len({row["prompt"] for row in rows}) == len(rows) == 200
    assert {row["prompt"] for row in rows} <= known
    assert {(row["width"], row["height"]) for row in rows} == {("64", "64")}
