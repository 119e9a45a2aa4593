"""Request images with only confluent-kafka, fastavro and the .avsc file.

    python bare_producer.py "a red heart on a white background" --width 64 --height 64
    python bare_producer.py "a lighthouse in fog" --registry http://localhost:8081

The request ids are printed to stdout. Without a registry, the record's value is in Avro single-object
encoding: C3 01, the schema's CRC-64-AVRO fingerprint in little endian, and the event. With a registry, it is
in Confluent's framing.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastavro
from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.schema_registry import SchemaRegistryClient, topic_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

SCHEMA = Path(__file__).parents[1] / "schemas" / "zimage.PromptRequest.v1.avsc"

Encode = Callable[[dict[str, Any]], bytes]


def single_object(schema_text: str) -> Encode:
    """Return an encoder that prefixes the schema's fingerprint, which needs no registry."""
    schema = fastavro.parse_schema(json.loads(schema_text))
    canonical = fastavro.schema.to_parsing_canonical_form(schema)
    fingerprint = bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))

    def encode(event: dict[str, Any]) -> bytes:
        out = io.BytesIO()
        out.write(b"\xc3\x01" + fingerprint)
        fastavro.schemaless_writer(out, schema, event)
        return out.getvalue()

    return encode


def confluent(schema_text: str, registry: str, topic: str, register: bool) -> Encode:
    """Return an encoder that prefixes the schema's id in the registry, under subject ``{topic}-value``."""
    serialize: Any = AvroSerializer(
        SchemaRegistryClient({"url": registry, "timeout": 10}),
        schema_text,
        # Set explicitly, because the default first requests associations, which not every registry supports.
        conf={"auto.register.schemas": register, "subject.name.strategy": topic_subject_name_strategy},
    )
    context = SerializationContext(topic, MessageField.VALUE)
    return lambda event: bytes(serialize(event, context))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", nargs="+", metavar="PROMPT")
    servers = os.environ.get("ZIMAGE_KAFKA__BOOTSTRAP_SERVERS", "localhost:9092")
    parser.add_argument("--bootstrap-servers", default=servers)
    parser.add_argument("--topic", default="zimage.requests")
    parser.add_argument("--registry", metavar="URL")
    parser.add_argument("--register", action="store_true", help="register the schema if it is missing")
    parser.add_argument("--tenant", default="default")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--height", type=int, default=1024)
    options = parser.parse_args()

    schema_text = SCHEMA.read_text(encoding="utf-8")
    if options.registry:
        encode = confluent(schema_text, options.registry, options.topic, options.register)
    else:
        encode = single_object(schema_text)

    # Idempotent, and acknowledged by all replicas: a record that is reported as delivered is not lost.
    producer = Producer(
        {"bootstrap.servers": options.bootstrap_servers, "enable.idempotence": True, "acks": "all"}
    )
    failed: list[str] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        request_id = (message.key() or b"").decode()
        if error is None:
            print(request_id)
        else:
            failed.append(request_id)
            print(f"{request_id} was not delivered: {error.str()}", file=sys.stderr)

    for prompt in options.prompts:
        # A request sent again with the same id makes no second image: use an id from your own system.
        request_id = str(uuid.uuid4())
        now = datetime.now(UTC)
        event = {
            "request_id": request_id,
            "tenant": options.tenant,
            "prompt": prompt,
            "width": options.width,
            "height": options.height,
            "created_at": now,
        }
        headers: list[tuple[str, str | bytes | None]] = [
            ("ce_specversion", "1.0"),
            ("ce_id", request_id),
            ("ce_source", "/examples/bare-producer"),
            ("ce_type", "zimage.PromptRequest.v1"),
            ("ce_time", now.isoformat()),
            ("content-type", "application/avro"),
        ]
        producer.produce(
            options.topic,
            key=request_id.encode(),
            value=encode(event),
            headers=headers,
            on_delivery=delivered,
        )
        producer.poll(0)
    left = producer.flush(30)
    if left:
        print(f"{left} request(s) were not acknowledged within 30 s", file=sys.stderr)
    return 1 if failed or left else 0


if __name__ == "__main__":
    sys.exit(main())
