"""Events to bytes and back, in the two framings that the topics carry."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import fastavro
from fastavro.read import SchemaResolutionError

from zimage_stream.errors import UnknownSchemaError, WireError
from zimage_stream.events.conform import conform
from zimage_stream.events.image_result import Failure, ImageResult, Source, Status, StoredImage, Timing
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.events.registry import Registry
from zimage_stream.events.schemas import IMAGE_RESULT, PROMPT_REQUEST, by_fingerprint, current
from zimage_stream.events.untrusted import MAX_STEPS, Body, Writer
from zimage_stream.settings import RegistrySettings

CONFLUENT_V0 = b"\x00"
SINGLE_OBJECT = b"\xc3\x01"

MAX_EVENT_BYTES = 4 << 20
"""A record of more is not decoded. The broker's limit is of compressed bytes, and bounds nothing."""

_ID = struct.Struct(">I")
_FINGERPRINT_BYTES = 8
_NAMES = {
    kind: tuple(field.name for field in fields(kind))
    for kind in (PromptRequest, ImageResult, StoredImage, Failure, Timing, Source)
}


class Codec:
    """Reads Confluent V0 and Avro single-object framing; writes V0 with a registry, else single-object.

    Whatever version an event was written in, it is read as today's. Thread-safe.
    """

    def __init__(self, registry: Registry | None = None) -> None:
        self._registry = registry

    def __enter__(self) -> Codec:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the registry's connections."""
        if self._registry is not None:
            self._registry.close()

    def prepare_results(self, topic: str) -> None:
        """Have all that :meth:`encode_result` needs; once it is had, nobody is asked again.

        Raises:
            RegistryUnavailableError, SchemaMissingError: the schema's id cannot be had.
        """
        if self._registry is not None:
            self._registry.schema_id(topic, current(IMAGE_RESULT))

    def encode_request(self, request: PromptRequest, topic: str) -> bytes:
        """The request as a record's value.

        Raises:
            RegistryUnavailableError, SchemaMissingError: its schema id cannot be had.
        """
        return self._encode(PROMPT_REQUEST, _fields(request), topic)

    def decode_request(self, data: bytes | None) -> PromptRequest:
        """The request in a record's value; its rules are not checked.

        Raises:
            WireError: it is no request of ours.
            UnknownSchemaError: nobody knows its schema.
            RegistryUnavailableError: nobody can say now.
        """
        return PromptRequest(**self._decode(PROMPT_REQUEST, data))

    def encode_result(self, result: ImageResult, topic: str) -> bytes:
        """The result as a record's value. Raises as :meth:`encode_request`."""
        record = _fields(result)
        for name in ("image", "error", "timing", "source"):
            record[name] = record[name] and _fields(record[name])
        return self._encode(IMAGE_RESULT, record, topic)

    def decode_result(self, data: bytes | None) -> ImageResult:
        """The result in a record's value. Raises as :meth:`decode_request`."""
        record = self._decode(IMAGE_RESULT, data)
        image, error = record["image"], record["error"]
        record |= {
            "status": Status(record["status"]),
            "image": image and StoredImage(**image),
            "error": error and Failure(**error),
            "timing": Timing(**record["timing"]),
            "source": Source(**record["source"]),
        }
        return ImageResult(**record)

    def _encode(self, name: str, record: Mapping[str, Any], topic: str) -> bytes:
        schema = current(name)
        out = io.BytesIO()
        if self._registry is None:
            out.write(SINGLE_OBJECT + schema.fingerprint)
        else:
            out.write(CONFLUENT_V0 + _ID.pack(self._registry.schema_id(topic, schema)))
        fastavro.schemaless_writer(out, schema.parsed, record)
        return out.getvalue()

    def _decode(self, name: str, data: bytes | None) -> dict[str, Any]:
        if not data:
            raise WireError("the record has no value" if data is None else "the record's value is empty")
        if len(data) > MAX_EVENT_BYTES:
            raise WireError(f"it has {len(data):,} bytes; at most {MAX_EVENT_BYTES:,} are decoded")
        writer, body = self._writer_schema(data)
        schema = writer.parsed
        if not isinstance(schema, dict) or schema.get("name") != name:
            found = schema.get("name") if isinstance(schema, dict) else schema
            raise WireError(f"the record holds {str(found)[:200]}, not {name}")
        if writer.cost is not None and writer.cost.steps(len(body)) > MAX_STEPS:
            raise WireError(
                f"{len(body):,} bytes of its schema could take {writer.cost.steps(len(body)):,} steps to "
                f"decode; at most {MAX_STEPS:,} are made"
            )
        reader = io.BytesIO(body) if writer.cost is None else Body(body)
        today = current(name).parsed
        try:
            decoded = fastavro.schemaless_reader(reader, schema, None if schema is today else today)
        except SchemaResolutionError as error:
            raise WireError(f"its schema cannot be read as today's {name}: {_brief(error)}") from error
        except Exception as error:
            # Damaged bytes surface as almost any exception of the decoder's: EOF, index, value, type, date.
            raise WireError(f"it does not decode as {name}: {_brief(error)}") from error
        left = len(body) - reader.tell()
        if left:
            raise WireError(f"{left} bytes follow the {name}, which do not belong to it")
        if not isinstance(decoded, dict):
            raise WireError(f"it does not decode as {name}")
        # What was written with today's schema has its types.
        event: dict[str, Any] = decoded if schema is today else conform(decoded, today)
        return event

    def _writer_schema(self, data: bytes) -> tuple[Writer, bytes]:
        if data.startswith(SINGLE_OBJECT):
            body = len(SINGLE_OBJECT) + _FINGERPRINT_BYTES
            if len(data) < body:
                raise WireError(f"the record ends within its schema's fingerprint ({len(data)} bytes)")
            mark = data[len(SINGLE_OBJECT) : body]
            schema = by_fingerprint().get(mark)
            if schema is None:
                raise UnknownSchemaError(
                    f"no published schema has the fingerprint {mark.hex()}; a newer producer may have "
                    f"written it: upgrade this reader first"
                )
            return Writer(schema.parsed), data[body:]
        if data.startswith(CONFLUENT_V0):
            body = len(CONFLUENT_V0) + _ID.size
            if len(data) < body:
                raise WireError(f"the record ends within its schema's id ({len(data)} bytes)")
            (schema_id,) = _ID.unpack(data[1:body])
            if self._registry is None:
                raise UnknownSchemaError(f"it names schema id {schema_id}, and no registry is configured")
            return self._registry.schema(schema_id), data[body:]
        raise WireError(
            f"it starts with {data[:2].hex(' ')}, which is neither Confluent framing (00) nor Avro "
            f"single-object framing (c3 01)"
        )


def create_codec(settings: RegistrySettings, patience_s: float = math.inf) -> Codec:
    """A codec with the registry that the settings name, if they name one.

    Args:
        patience_s: as :class:`Registry` takes it.
    """
    return Codec(Registry(settings, patience_s=patience_s) if settings.url else None)


def schema_mark(data: bytes | None) -> bytes:
    """The bytes by which a record names its schema, whether anybody knows it or not. Pure."""
    data = data or b""
    length = len(SINGLE_OBJECT) + _FINGERPRINT_BYTES if data.startswith(SINGLE_OBJECT) else 1 + _ID.size
    return data[:length]


def _fields(event: Any) -> dict[str, Any]:
    names = _NAMES[type(event)]
    return {name: getattr(event, name) for name in names}


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
