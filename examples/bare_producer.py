"""Ask for pictures with nothing but confluent-kafka, fastavro and the .avsc file.

    python bare_producer.py "a red heart on a white background" --width 64 --height 64
    python bare_producer.py "a lighthouse in fog" --registry http://localhost:8081

The request ids go to stdout. Without a registry the record's value is Avro single-object encoding: C3 01,
the schema's CRC-64-AVRO fingerprint in little endian, and the event. With one it is Confluent's framing.
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
    """Encodes with the schema's fingerprint in front; nobody has to be asked."""
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
    """Encodes with the id that the schema has in the registry under the subject ``{topic}-value``."""
    serialize: Any = AvroSerializer(
        SchemaRegistryClient({"url": registry, "timeout": 10}),
        schema_text,
        # Said aloud, since the default first asks for associations, which not every registry answers.
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
    parser.add_argument("--register", action="store_true", help="register the schema if it is not there")
    parser.add_argument("--tenant", default="default")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--height", type=int, default=1024)
    asked = parser.parse_args()

    schema_text = SCHEMA.read_text(encoding="utf-8")
    if asked.registry:
        encode = confluent(schema_text, asked.registry, asked.topic, asked.register)
    else:
        encode = single_object(schema_text)

    # Idempotent and acknowledged by all replicas: what is reported as delivered is not lost.
    producer = Producer(
        {"bootstrap.servers": asked.bootstrap_servers, "enable.idempotence": True, "acks": "all"}
    )
    failed: list[str] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        request_id = (message.key() or b"").decode()
        if error is None:
            print(request_id)
        else:
            failed.append(request_id)
            print(f"{request_id} was not delivered: {error.str()}", file=sys.stderr)

    for prompt in asked.prompts:
        # Sent again under the same id, a request makes no second picture: use an id of your own system's.
        request_id = str(uuid.uuid4())
        now = datetime.now(UTC)
        event = {
            "request_id": request_id,
            "tenant": asked.tenant,
            "prompt": prompt,
            "width": asked.width,
            "height": asked.height,
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
            asked.topic, key=request_id.encode(), value=encode(event), headers=headers, on_delivery=delivered
        )
        producer.poll(0)
    left = producer.flush(30)
    if left:
        print(f"{left} request(s) were not acknowledged within 30 s", file=sys.stderr)
    return 1 if failed or left else 0


if __name__ == "__main__":
    sys.exit(main())
