"""Follow results with only confluent-kafka, fastavro and the .avsc file.

    python bare_subscriber.py
    python bare_subscriber.py --registry http://localhost:8081 --group shop --count 10

Prints one JSON object per line, each result once per group: its offset is committed after it is handled.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import struct
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import fastavro
from confluent_kafka import Consumer, KafkaException, Message
from confluent_kafka.schema_registry import SchemaRegistryClient

SCHEMA = Path(__file__).parents[1] / "schemas" / "zimage.ImageResult.v1.avsc"
REMEMBERED = 10_000


class Decoder:
    """Decodes both framings and all schema versions, to the version of ``SCHEMA``."""

    def __init__(self, registry: str | None) -> None:
        self._registry = SchemaRegistryClient({"url": registry, "timeout": 10}) if registry else None
        self._mine = fastavro.parse_schema(json.loads(SCHEMA.read_text(encoding="utf-8")))
        self._writers: dict[bytes, Any] = {}
        for file in SCHEMA.parent.glob("zimage.ImageResult.*.avsc"):
            schema = fastavro.parse_schema(json.loads(file.read_text(encoding="utf-8")))
            canonical = fastavro.schema.to_parsing_canonical_form(schema)
            self._writers[bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))] = schema

    def decode(self, value: bytes) -> dict[str, Any]:
        """Decode a result. Raises ValueError if the value is not one."""
        if value[:2] == b"\xc3\x01" and value[2:10] in self._writers:
            writer, body = self._writers[value[2:10]], value[10:]
        elif value[:1] == b"\x00" and len(value) > 5 and self._registry is not None:
            writer, body = self._writer_of(struct.unpack(">I", value[1:5])[0]), value[5:]
        else:
            raise ValueError(f"unknown framing or schema: {value[:10].hex(' ')}")
        event: Any = fastavro.schemaless_reader(io.BytesIO(body), writer, self._mine)
        return dict(event)

    def _writer_of(self, schema_id: int) -> Any:
        key = struct.pack(">I", schema_id)
        if key not in self._writers:
            assert self._registry is not None
            text = self._registry.get_schema(schema_id).schema_str
            self._writers[key] = fastavro.parse_schema(json.loads(text or "null"))
        return self._writers[key]


class Seen:
    """Remembers which records have been answered.

    Under ``at_least_once`` a result may arrive twice; both copies have the same ``source``, the record that
    they answer. A service would store this together with its own data.
    """

    def __init__(self) -> None:
        self._sources: OrderedDict[tuple[str, int, int], None] = OrderedDict()

    def before(self, result: dict[str, Any]) -> bool:
        source = result["source"]
        location = (source["topic"], source["partition"], source["offset"])
        known = location in self._sources
        self._sources[location] = None
        if len(self._sources) > REMEMBERED:
            self._sources.popitem(last=False)
        return known


def handle(result: dict[str, Any]) -> None:
    """Process a result; replace this with the code of your service."""
    # ASCII only: text from others may contain terminal escape sequences.
    print(json.dumps(result, default=str), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    servers = os.environ.get("ZIMAGE_KAFKA__BOOTSTRAP_SERVERS", "localhost:9092")
    parser.add_argument("--bootstrap-servers", default=servers)
    parser.add_argument("--topic", default="zimage.results")
    parser.add_argument("--registry", metavar="URL")
    parser.add_argument("--group", default="bare-subscriber")
    parser.add_argument("--count", type=int, help="stop after this many results")
    options = parser.parse_args()

    decoder, seen, count = Decoder(options.registry), Seen(), 0
    consumer = Consumer(
        {
            "bootstrap.servers": options.bootstrap_servers,
            "group.id": options.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            # Results are written in transactions; records of aborted ones must be ignored.
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([options.topic])
    try:
        while options.count is None or count < options.count:
            message = consumer.poll(0.2)
            if message is None:
                continue
            if message.error():
                raise KafkaException(message.error())
            result = read(decoder, message)
            if result is not None and not seen.before(result):
                handle(result)
                count += 1
            consumer.commit(message=message, asynchronous=False)
    except KeyboardInterrupt:
        return 130
    finally:
        consumer.close()
    return 0


def read(decoder: Decoder, message: Message) -> dict[str, Any] | None:
    """Return the result in a record; report and skip an invalid one, which would block the group."""
    value: Any = message.value()
    try:
        return decoder.decode(value or b"")
    except (ValueError, EOFError) as error:
        location = f"{message.topic()}/{message.partition()}/{message.offset()}"
        print(f"{location} is not a result: {error!r}", file=sys.stderr)
        return None


if __name__ == "__main__":
    sys.exit(main())
