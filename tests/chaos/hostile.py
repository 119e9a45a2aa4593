"""A scenario in which hostile records are written to the requests topic among ordinary requests."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from confluent_kafka import Producer

from tests.chaos.poison import (
    DRIPPING_ID,
    FAILING_ID,
    MADE,
    PLAIN_ID,
    UNKNOWN,
    Poison,
    draw,
    framed,
    request_bytes,
    schemas,
)
from tests.chaos.scenarios import Scenario
from tests.chaos.stage import ANSWERED_WITHIN_S, Stage
from tests.chaos.workloads import image_request
from tests.fleet.arena import client_config
from tests.fleet.topics import take_anything
from tests.fleet.wire import RawProducer
from tests.unit.events.registries import AnyRegistry
from zimage_stream.events.schemas import IMAGE_RESULT, current
from zimage_stream.settings import environment_of

SHORT_RECORDS, LONG_RECORDS = 300, 5_200
ORDINARY_EVERY = 5
ABORTED_EVERY = 100
COMMANDS = (
    (("status",), (0,)),
    (("status", "--json"), (0,)),
    (("topics", "check"), (1,)),
    (("results", "--json"), (0,)),
    (("dead-letters", "list"), (0,)),
    (("dead-letters", "list", "--json"), (0,)),
    (("dead-letters", "export"), (0,)),
    (("dead-letters", "show", "0:0"), (0,)),
)
"""Commands that must survive such a log, with their permitted exit codes."""


def hostile_records(stage: Stage, scale: float) -> None:
    """Thousands of hostile records of every kind, in all partitions. No worker and no command may die of
    one."""
    settings = stage.arena.settings
    long = scale >= 2
    with _registry(stage) as registry:
        take_anything(settings.kafka, settings.topics.requests)
        stage.environment["ZIMAGE_REGISTRY__URL"] = registry.url
        stage.start_workers()
        lives = [worker.pid for worker in stage.crew]
        _send(stage, LONG_RECORDS if long else SHORT_RECORDS)
        if long:
            # Schemas that are unavailable: such requests end after a minute.
            for schema_id in (FAILING_ID, DRIPPING_ID):
                stage.send_bytes(framed(schema_id, image_request()), UNKNOWN)
            stage.flush()
        stage.wait_served(range(stage.partitions), ANSWERED_WITHIN_S)
        assert [worker.pid for worker in stage.crew] == lives, "a worker died of a record"
        for words, codes in COMMANDS:
            _command(stage, registry, words, codes)


def _send(stage: Stage, count: int) -> None:
    topic = stage.arena.settings.topics.requests
    seed = stage.rng.randrange(10**9)
    servers = stage.arena.settings.kafka.bootstrap_servers
    aborting = Producer(
        {**client_config(stage.arena.settings.kafka), "transactional.id": f"{topic}-aborting"}
    )
    aborting.init_transactions(120)
    with ExitStack() as stack:
        producers = {
            codec: stack.enter_context(RawProducer(servers, codec))
            for codec in ("none", "gzip", "snappy", "lz4", "zstd")
        }
        for number in range(count):
            poison, partition = draw(seed, number), number % stage.partitions
            offset = producers[poison.codec].send(
                topic,
                poison.value,
                key=poison.key,
                headers=poison.headers,
                timestamp=poison.timestamp,
                partition=partition,
            )
            assert offset is not None, f"the broker refuses {poison}"
            stage.accept(partition, offset, _line(poison, f"{poison} (seed {seed}, number {number})"))
            stage.fault()
            if number % ORDINARY_EVERY == 0:
                ordinary = image_request(f"ordinary {number}", tenant=f"tenant-{number % 7}")
                known = {"request_id": ordinary.request_id, "tenant": ordinary.tenant, "attributes": {}}
                stage.send_bytes(framed(PLAIN_ID, ordinary), MADE, known)
            if number % ABORTED_EVERY == 0:
                aborting.begin_transaction()
                aborting.produce(topic, poison.value, partition=partition)
                aborting.produce(topic, request_bytes(image_request("aborted")), partition=partition)
                aborting.flush(120)
                aborting.abort_transaction(120)


def _line(poison: Poison, description: str) -> dict[str, object]:
    return {
        "request_id": None,
        "tenant": None,
        "attributes": None,
        "sha256": hashlib.sha256(poison.value or b"").hexdigest(),
        "key_sha256": hashlib.sha256(poison.key or b"").hexdigest(),
        "allowed": list(poison.allowed),
        "hostile": description,
    }


@contextmanager
def _registry(stage: Stage) -> Iterator[AnyRegistry]:
    """A registry with hostile schemas in addition to the real ones and the results schema."""
    result, topic = current(IMAGE_RESULT), stage.arena.settings.topics.results
    with AnyRegistry() as registry:
        for schema_id, (kind, schema) in schemas().items():
            registry.put(schema_id, schema, kind)
        registry.fail(FAILING_ID)
        registry.drip(DRIPPING_ID)
        answer = {"subject": f"{topic}-value", "version": 1, "id": 2, "schema": result.text}
        registry.answers[f"/subjects/{topic}-value"] = 200, answer
        registry.put(2, result.text)
        yield registry


def _command(stage: Stage, registry: AnyRegistry, words: tuple[str, ...], codes: tuple[int, ...]) -> None:
    environment = environment_of(stage.arena.settings) | {
        "ZIMAGE_REGISTRY__URL": registry.url,
        "PYTHONUTF8": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "zimage_stream", *words],
        env=environment,
        capture_output=True,
        timeout=300,
        check=False,
    )
    said = done.stderr.decode(errors="replace")
    assert done.returncode in codes, f"zimage {' '.join(words)}: {done.returncode}, {said[-2000:]}"
    assert "Traceback" not in said, said[-2000:]


SCENARIOS = {"hostile records": Scenario("hostile records", hostile_records, short=False)}
